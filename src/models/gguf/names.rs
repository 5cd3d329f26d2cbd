//! Where a weight of the decoder is in a GGUF file.

use super::config::Architecture;
use crate::models::ModelConfig;

/// A tensor's name in the file, and what was done to its rows.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// The heads within whose rows neighbours are rotated together; none where halves are, as the decoder does it.
    pub paired_heads: Option<usize>,
}

/// Parts of a layer: the decoder's names, and those of the files.
const PARTS: [(&str, &str); 15] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Finds the place of a weight by the decoder's name for it; none if files have no such weight.
pub(super) fn place(
    name: &str,
    architecture: &Architecture,
    config: &ModelConfig,
) -> Option<Place> {
    let plain = |name: &str| Some(Place { name: name.to_owned(), paired_heads: None });
    match name {
        "model.embed_tokens.weight" => return plain("token_embd.weight"),
        "model.norm.weight" => return plain("output_norm.weight"),
        "lm_head.weight" => return plain("output.weight"),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, theirs) = PARTS.into_iter().find(|(ours, _)| *ours == part)?;
    let theirs = match part {
        // Where outputs have norms, it is the one of attention's output.
        "post_attention_layernorm" if config.output_norms => "post_attention_norm",
        _ => theirs,
    };
    let paired_heads = match part {
        "self_attn.q_proj" if architecture.pairs => Some(config.num_attention_heads),
        "self_attn.k_proj" if architecture.pairs => Some(config.num_key_value_heads),
        _ => None,
    };
    Some(Place { name: format!("blk.{layer}.{theirs}.{kind}"), paired_heads })
}

/// Returns, for each row of a projection whose heads rotate halves, the row of the file that holds it.
///
/// Conversion to GGUF puts row `i` of a head's first half and row `i` of its second half behind each other.
pub fn unpaired_rows(rows: usize, heads: usize) -> impl Iterator<Item = usize> {
    let width = (rows / heads.max(1)).max(1);
    (0..rows).map(move |row| {
        let (head, within) = (row / width, row % width);
        let half = width / 2;
        if half == 0 { row } else { head * width + 2 * (within % half) + within / half }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `convert_hf_to_gguf.py` permutes: `reshape(heads, 2, half).swapaxes(1, 2)`.
    #[test]
    fn rows_of_heads_come_back_into_halves() {
        let (heads, half) = (3, 4);
        let mut stored = Vec::new();
        for head in 0..heads {
            for within in 0..half {
                for side in 0..2 {
                    stored.push(head * 2 * half + side * half + within);
                }
            }
        }
        let back: Vec<usize> = unpaired_rows(stored.len(), heads).map(|row| stored[row]).collect();
        assert_eq!(back, (0..stored.len()).collect::<Vec<_>>());
    }
}
