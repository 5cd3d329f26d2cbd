//! Headers of GGUF files: whole, broken, hostile and unsupported ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod gguf_kit;
mod reference;

use gguf_kit::*;
use reference::fixture;
use shammah::models::Family;
use shammah::models::gguf::GgufFile;

/// The smallest file that describes a model.
fn model() -> Gguf {
    Gguf::new()
        .text("general.architecture", "qwen3")
        .count("qwen3.block_count", 1)
        .count("qwen3.context_length", 64)
        .count("qwen3.embedding_length", 8)
        .count("qwen3.feed_forward_length", 16)
        .count("qwen3.attention.head_count", 2)
        .float("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
        .tensor("token_embd.weight", &[8, 10])
}

fn refused(file: &Gguf, parts: &[&str]) {
    says(&file.read().unwrap_err().to_string(), parts);
}

fn says(error: &str, parts: &[&str]) {
    assert!(error.starts_with("model.gguf: ") && error.contains("; "), "{error}");
    assert!(!error.contains('\n'), "one line: {error}");
    for part in parts {
        assert!(error.contains(part), "\"{part}\" is not in: {error}");
    }
}

#[test]
fn a_file_is_described_without_its_weights() {
    let file = GgufFile::open(&fixture("gguf/qwen3_q4_0.gguf")).unwrap();
    let said = file.describe().unwrap();
    assert_eq!(said.name.as_deref(), Some("random qwen3_q4_0"));
    assert_eq!((said.family, said.context_length), (Family::Qwen3, 128));
    let formats: Vec<&str> = said.formats.keys().copied().collect();
    assert_eq!(formats, ["f32", "q4_0", "q8_0"]);
    // 320 rows of 64 in blocks of 34 bytes for 32.
    assert_eq!(said.formats["q8_0"], 320 * 2 * 34);
    let layer = 64 * (128 + 64 + 64 + 128 + 3 * 96) + 2 * 64 + 2 * 32;
    assert_eq!(said.parameters, 320 * 64 + 2 * layer + 64);
    assert!(said.chat_template);
    assert_eq!(said.bytes, fs_err::metadata(fixture("gguf/qwen3_q4_0.gguf")).unwrap().len());
    let config = file.config().unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads, config.rms_norm_eps), (32, 2, 1e-3));
    assert!(config.tie_word_embeddings && config.qk_norm && config.eos_token_ids == [2]);
}

#[test]
fn versions_and_bytes_of_another_order_are_refused_by_name() {
    assert!(Gguf { version: 2, ..model() }.read().is_ok());
    refused(&Gguf { version: 1, ..model() }, &["version 1 of GGUF is not supported"]);
    refused(&Gguf { version: 4, ..model() }, &["version 4 of GGUF"]);
    refused(&Gguf { version: 3 << 24, ..model() }, &["big-endian", "little-endian"]);
    refused(&Gguf { magic: *b"GGML", ..model() }, &["does not begin with \"GGUF\""]);
    says(&read(b"").unwrap_err().to_string(), &["not a whole GGUF file", "download it again"]);
}

#[test]
fn metadata_that_lies_about_its_length_is_refused_before_memory_is_taken() {
    let long = |length: u64| length.to_le_bytes().to_vec();
    for (kind, bytes) in [
        (TEXT, long(1 << 40)),
        (TEXT, long(u64::MAX)),
        (ARRAY, [U32.to_le_bytes().to_vec(), long(1 << 40)].concat()),
        (ARRAY, [TEXT.to_le_bytes().to_vec(), long(1 << 24)].concat()),
        (ARRAY, [12u32.to_le_bytes().to_vec(), long(u64::MAX)].concat()),
        (ARRAY, [ARRAY.to_le_bytes().to_vec(), long(1 << 20)].concat()),
        (ARRAY, [13u32.to_le_bytes().to_vec(), long(1)].concat()),
        (BOOL, vec![2]),
        (13, vec![0; 8]),
    ] {
        refused(&model().value("x", kind, &bytes), &["not a whole GGUF file: x: "]);
    }
    let mut nested = array(U32, &[]);
    for _ in 0..100_000 {
        nested = [ARRAY.to_le_bytes().as_slice(), &1u64.to_le_bytes(), &nested[..]].concat();
        if nested.len() > 1000 {
            break;
        }
    }
    refused(&model().value("x", ARRAY, &nested), &["arrays within arrays, deeper than 4"]);
    refused(&model().count("general.alignment", 24), &["general.alignment is 24"]);
    refused(&model().count("general.alignment", 0), &["general.alignment is 0"]);
    refused(&model().count("x", 1).count("x", 1), &["x is there twice"]);
    refused(&model().value("x", TEXT, &[&long(2)[..], &[0xC3, 0x28]].concat()), &["not UTF-8"]);
    for at in [8, 16] {
        let mut bytes = model().bytes();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        says(&read(&bytes).unwrap_err().to_string(), &["more than 65536"]);
    }
}

#[test]
fn values_of_every_type_are_read() {
    let eight = 1.5f64.to_le_bytes();
    let file = model()
        .value("u8", 0, &[7])
        .value("i8", 1, &[0xFF])
        .value("u16", 2, &[1, 2])
        .value("i16", 3, &[1, 2])
        .value("i32", 5, &[0; 4])
        .value("u64", 10, &[0; 8])
        .value("i64", 11, &[0; 8])
        .value("f64", 12, &eight)
        .value("bytes", ARRAY, &array(0, &[vec![1], vec![2]]))
        .value("doubles", ARRAY, &array(12, &[eight.to_vec()]))
        .value("nested", ARRAY, &array(ARRAY, &[array(TEXT, &[text("a")]), array(U32, &[])]))
        .flag("flag", true)
        .texts("texts", &["a".into()]);
    assert!(file.read().unwrap().config().is_ok());
}

#[test]
fn tensors_outside_the_file_or_in_each_other_are_refused() {
    let spoilt = |change: fn(&mut Entry)| {
        let mut file = model().tensor("output.weight", &[8, 10]);
        change(&mut file.tensors[1]);
        file
    };
    refused(&spoilt(|t| t.offset = 0), &["tensors token_embd.weight and output.weight overlap"]);
    refused(&spoilt(|t| t.offset += 32), &["output.weight ends behind the file"]);
    refused(&spoilt(|t| t.offset += 4), &["output.weight is not aligned to 32"]);
    refused(&spoilt(|t| t.offset = u64::MAX - 31), &["output.weight ends behind the file"]);
    refused(&spoilt(|t| t.name = "token_embd.weight".into()), &["is there twice"]);
    refused(&spoilt(|t| t.name = "x".repeat(300)), &["a tensor's name of 300 bytes"]);
    refused(&spoilt(|t| t.dims = vec![]), &["has 0 dimensions"]);
    refused(&spoilt(|t| t.dims = vec![1; 5]), &["has 5 dimensions"]);
    refused(&spoilt(|t| t.dims = vec![8, 0]), &["has the shape [0, 8]"]);
    refused(&spoilt(|t| t.dims = vec![1 << 40, 1 << 40]), &["has the shape"]);
    refused(&spoilt(|t| t.dims = vec![1 << 62, 2]), &["has the shape"]);
    refused(&spoilt(|t| t.kind = 8), &["rows that are no multiple of 32, as q8_0 needs them"]);
    let remedy = "choose a file in f32, f16, bf16, Q8_0";
    refused(&spoilt(|t| t.kind = 10), &["output.weight of type q2_k is not supported", remedy]);
    refused(&spoilt(|t| t.kind = 99), &["of type number 99", remedy]);
    let parts = model().count("split.count", 3);
    refused(&parts, &["one of 3 parts", "llama-gguf-split --merge"]);
}

#[test]
fn metadata_that_no_model_is_made_of_is_refused_by_key() {
    let error = |file: Gguf| file.read().unwrap().config().unwrap_err().to_string();
    assert!(model().read().unwrap().config().is_ok());
    let without = |key: &str| {
        let mut file = model();
        let before = file.values.len();
        file.values.retain(|v| !v.starts_with(&text(key)));
        assert_eq!(file.values.len(), before - 1);
        file
    };
    for key in ["general.architecture", "qwen3.block_count", "qwen3.embedding_length"] {
        says(&error(without(key)), &[&format!("{key} is missing")]);
    }
    let mamba = without("general.architecture").text("general.architecture", "mamba");
    says(
        &error(mamba),
        &["architecture \"mamba\" is not supported", "llama, qwen2, qwen3, gemma3"],
    );
    let zero = without("qwen3.attention.head_count").count("qwen3.attention.head_count", 0);
    says(&error(zero), &["head_count is 0"]);
    let textual = without("qwen3.block_count").text("qwen3.block_count", "many");
    says(&error(textual), &["qwen3.block_count is \"many\", not one count"]);
    let experts = model().count("qwen3.expert_count", 8);
    says(&error(experts), &["qwen3.expert_count = 8 is not supported"]);
    let partial = model().count("qwen3.rope.dimension_count", 2);
    says(&error(partial), &["rope.dimension_count is 2, heads are 4 wide"]);
    says(&error(Gguf { tensors: vec![], ..model() }), &["token_embd.weight is missing"]);
}

/// The same model of another architecture.
fn of(architecture: &str) -> Gguf {
    let mut file = model();
    for value in &mut file.values {
        let (from, to) = (b"qwen3", architecture.as_bytes());
        if let Some(at) = value.windows(from.len()).position(|part| part == from) {
            value.splice(at..at + from.len(), to.iter().copied());
            // The length of the key, or of the one value that is a name.
            let length = if at == 8 { 0 } else { at - 8 };
            value[length] = value[length] + to.len() as u8 - from.len() as u8;
        }
    }
    file
}

/// The file's bytes with these numbers as its last tensor's data, f32.
fn with_numbers(file: &Gguf, numbers: &[f32]) -> Vec<u8> {
    let mut bytes = file.bytes();
    let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let at = bytes.len() - 32;
    bytes[at..at + numbers.len()].copy_from_slice(&numbers);
    bytes
}

#[test]
fn divisors_of_frequencies_are_positive_numbers_one_for_each() {
    let llama = |count: u64| of("llama").tensor("rope_freqs.weight", &[count]);
    let rope = |bytes: &[u8]| read(bytes).unwrap().config().unwrap().rope;
    let scaled = rope(&with_numbers(&llama(2), &[1.0, 8.0])).frequencies();
    let plain = rope(&of("llama").bytes()).frequencies();
    assert_eq!(scaled, [plain[0], plain[1] / 8.0]);
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = read(&with_numbers(&llama(2), &[1.0, wrong])).unwrap_err().to_string();
        says(&error, &["rope_freqs.weight holds ", "not positive numbers alone"]);
    }
    let three = read(&with_numbers(&llama(3), &[1.0; 3])).unwrap();
    says(&three.config().unwrap_err().to_string(), &["holds 3 numbers, not 2 positive ones"]);
    refused(&llama(1 << 13), &["rope_freqs.weight is [8192] of f32, not some numbers in f32"]);
    let mut half = llama(2);
    half.tensors[1].kind = 1;
    refused(&half, &["rope_freqs.weight is [2] of f16"]);
    let yarn = llama(2).text("llama.rope.scaling.type", "yarn");
    let error = read(&with_numbers(&yarn, &[1.0; 2])).unwrap().config().unwrap_err();
    says(&error.to_string(), &["llama.rope.scaling.type is \"yarn\" beside divisors"]);
}

#[test]
fn a_factor_without_a_type_scales_linearly() {
    let rope = |file: Gguf| file.read().unwrap().config().unwrap().rope;
    let scaled = rope(model().float("qwen3.rope.scaling.factor", 4.0)).frequencies();
    let plain = rope(model()).frequencies();
    assert_eq!(scaled, [plain[0] / 4.0, plain[1] / 4.0]);
    let yarn = model().text("qwen3.rope.scaling.type", "yarn");
    let yarn = yarn.float("qwen3.rope.scaling.attn_factor", 0.9);
    let error = yarn.read().unwrap().config().unwrap_err().to_string();
    says(&error, &["qwen3.rope.scaling.attn_factor is not 1"]);
    let none = model().float("qwen3.rope.scaling.factor", 4.0);
    assert_eq!(rope(none.text("qwen3.rope.scaling.type", "none")).frequencies(), plain);
}

#[test]
fn windows_are_those_of_the_architecture() {
    let windows = |file: Gguf| file.read().unwrap().config().unwrap().layer_windows;
    let window = |name: &str| of(name).count(&format!("{name}.attention.sliding_window"), 9);
    assert_eq!(windows(window("llama")), [Some(9)]);
    assert_eq!(windows(window("phi3")), [Some(9)]);
    assert_eq!(windows(window("gemma3")), [Some(9)]);
    assert_eq!(windows(of("gemma3")), [None]);
    assert_eq!(windows(of("phi3").count("phi3.attention.sliding_window", 0)), [None]);
    let period = window("gemma3").count("gemma3.attention.sliding_window_pattern", 1);
    assert_eq!(windows(period), [None]);
    let local = of("gemma3").float("gemma3.rope.freq_base_swa", 5e3).read().unwrap();
    let local = local.config().unwrap();
    assert_eq!(local.sliding_rope.unwrap().theta, 5e3);
    assert_eq!(local.attention_scale, 0.5, "by the width of heads");
    let softcap = of("gemma3").float("gemma3.final_logit_softcapping", 30.0);
    let error = softcap.read().unwrap().config().unwrap_err().to_string();
    says(&error, &["gemma3.final_logit_softcapping = 30 is not supported"]);
}

/// Files of the largest Gemma 3 do not say that its scores are scaled by hidden size over heads.
#[test]
fn the_scale_of_the_largest_gemma_is_known_by_its_layers() {
    let mut file = of("gemma3");
    file.values.retain(|v| !v.starts_with(&text("gemma3.block_count")));
    file.values.retain(|v| !v.starts_with(&text("gemma3.embedding_length")));
    let file = file
        .count("gemma3.block_count", 62)
        .count("gemma3.embedding_length", 32)
        .count("gemma3.attention.key_length", 4);
    assert_eq!(file.read().unwrap().config().unwrap().attention_scale, 0.25);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = model().tensor("output.weight", &[8, 3]).bytes();
    assert!(read(&bytes).is_ok());
    for length in 0..bytes.len() {
        read(&bytes[..length]).unwrap_err();
    }
}
