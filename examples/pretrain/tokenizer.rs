//! The built-in model's tokenizer: a byte-level BPE in the layout of Qwen2, with a small vocabulary.

use anyhow::{Result, anyhow};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// The special tokens in the order of their ids: 0, 1 and 2.
pub const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Qwen2's split: contractions, words with a leading space, single digits, punctuation, line ends, spaces.
const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A pair of pieces seen only once is noise and gets no token.
const MIN_FREQUENCY: u64 = 2;

/// Trains a byte-level BPE of at most `vocab_size` tokens (special tokens and the 256 bytes included) on `texts`.
///
/// # Errors
/// When `vocab_size` cannot hold the bytes and the special tokens, or the trainer fails.
pub fn train(texts: impl Iterator<Item = String>, vocab_size: usize) -> Result<Tokenizer> {
    let alphabet = ByteLevel::alphabet();
    let least = alphabet.len() + SPECIAL_TOKENS.len();
    if vocab_size < least {
        return Err(anyhow!(
            "a vocabulary of {vocab_size} is too small: the bytes and special tokens alone are {least}"
        ));
    }
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer()?));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
    let bpe = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .min_frequency(MIN_FREQUENCY)
        .initial_alphabet(alphabet.into_iter().collect())
        .special_tokens(SPECIAL_TOKENS.iter().map(|token| AddedToken::from(*token, true)).collect())
        .show_progress(false)
        .build();
    // The trainer wants an iterator that can be sent to its threads, which the caller's need not be.
    let texts: Vec<String> = texts.collect();
    tokenizer
        .train(&mut TrainerWrapper::from(bpe), texts.into_iter())
        .map_err(|error| anyhow!("cannot train the tokenizer: {error}"))?;
    Ok(tokenizer)
}

/// Makes the two steps before BPE: split into words, then map bytes to printable characters.
fn pre_tokenizer() -> Result<Sequence> {
    let split =
        Split::new(SplitPattern::Regex(SPLIT.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| anyhow!("cannot compile the split pattern: {error}"))?;
    Ok(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> Tokenizer {
        let texts = [
            "what does /good do",
            "/good has weight 1.",
            "what does /critical do",
            "what is 1024?",
        ];
        train(texts.iter().cycle().take(40).map(|text| (*text).to_owned()), 320).unwrap()
    }

    #[test]
    fn decoding_gives_back_what_was_encoded() {
        let tokenizer = trained();
        for text in [
            "what does /good do?",
            "  two  spaces\n\nand\ttabs",
            "it's 2026",
            "Zoë – 日本 🙂",
            "lora_a3f9",
        ] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
    }

    #[test]
    fn special_tokens_have_the_first_ids() {
        let tokenizer = trained();
        for (id, token) in (0u32..).zip(SPECIAL_TOKENS) {
            assert_eq!(tokenizer.token_to_id(token), Some(id));
        }
        assert!(tokenizer.get_vocab_size(true) <= 320);
    }

    #[test]
    fn digits_are_single_tokens_and_common_words_are_one() {
        let tokenizer = trained();
        assert_eq!(tokenizer.encode("1024", false).unwrap().len(), 4);
        assert_eq!(tokenizer.encode("what", false).unwrap().len(), 1);
    }

    #[test]
    fn a_saved_tokenizer_reads_back_the_same() {
        let tokenizer = trained();
        let json = tokenizer.to_string(false).unwrap();
        let again: Tokenizer = json.parse().unwrap();
        let text = "what does /critical do?";
        assert_eq!(
            tokenizer.encode(text, false).unwrap().get_ids(),
            again.encode(text, false).unwrap().get_ids()
        );
    }

    #[test]
    fn a_vocabulary_smaller_than_the_bytes_is_refused() {
        assert!(train(std::iter::once("hello".to_owned()), 100).is_err());
    }
}
