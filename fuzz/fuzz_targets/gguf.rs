//! A GGUF file's header, and all that is made of it.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shammah::models::gguf::GgufFile;

fuzz_target!(|bytes: &[u8]| {
    let size = bytes.len() as u64;
    let Ok(file) = GgufFile::read(Cursor::new(bytes), size, Path::new("model.gguf")) else {
        return;
    };
    let _ = (file.config(), file.describe());
    if let Ok(tokenizer) = file.tokenizer() {
        let _ = tokenizer.encode_text("Hello <|im_end|> world");
    }
});
