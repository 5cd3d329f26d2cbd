//! Files with bytes changed or missing: each is taken or refused, without a panic and without memory that the file does not
//! justify. `cargo test --test hostile_files -- --ignored` tries many more than the suite does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]
#![allow(unsafe_code, reason = "an allocator that counts")]

mod gguf_kit;
mod reference;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::Device;
use gguf_kit::{ARRAY, Gguf};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reference::{decoder, fixture};
use shammah::cli::feedback_file;
use shammah::config::{Config, LoadArgs};
use shammah::domain::Mark;
use shammah::eval::Measurements;
use shammah::lora::{CONFIG_FILE, JobInput, LoraAdapter, WEIGHTS_FILE};
use shammah::models::{ModelSource, load};
use shammah::worker::codec;
use shammah::worker::protocol::{Event, Request};

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// Counts what each thread holds.
struct Counting;

fn count(bytes: isize) {
    // A thread that ends has no counter any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the most bytes that were held at once while `f` ran, beyond those before.
fn most(f: impl FnOnce()) -> usize {
    let before = HELD.get();
    MOST.set(before);
    f();
    (MOST.get() - before).max(0) as usize
}

/// Bytes that reading may take whatever the file: buffers, regular expressions, error texts.
const FIXED: usize = 8 << 20;
/// Bytes held for each byte of the file: the longest list, of empty texts, takes 24 for 8.
const FACTOR: usize = 16;

/// Calls `read` with mutations of `bytes`, the first `header` of which matter most.
fn mutate(what: &str, bytes: &[u8], header: usize, cases: u64, mut read: impl FnMut(&[u8])) {
    for case in 0..cases {
        let mut random = StdRng::seed_from_u64(case);
        let mut changed = bytes.to_vec();
        for _ in 0..random.random_range(1..=4) {
            let at = random.random_range(0..header);
            match random.random_range(0..5) {
                0 => changed[at] = random.random(),
                1 => changed[at] ^= 1 << random.random_range(0..8),
                2 => {
                    // Lengths and offsets are 8 bytes.
                    let number = random.random::<u64>() >> random.random_range(0..64);
                    let end = changed.len().min(at + 8);
                    changed[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
                }
                3 => changed.truncate(random.random_range(at..changed.len()).max(1)),
                _ => {
                    let from = random.random_range(0..header);
                    let length = random.random_range(0..32).min(header - from.max(at));
                    changed.copy_within(from..from + length, at);
                }
            }
            if changed.len() < header {
                break;
            }
        }
        let held = most(|| {
            if catch_unwind(AssertUnwindSafe(|| read(&changed))).is_err() {
                panic!("{what}: mutation {case} panicked");
            }
        });
        let limit = FIXED + FACTOR * changed.len();
        assert!(held <= limit, "{what}: mutation {case} took {held} bytes, at most {limit}");
    }
}

/// Everything that is made of a GGUF file's header.
fn read_gguf(bytes: &[u8]) {
    if let Ok(file) = gguf_kit::read(bytes) {
        let _ = (file.config(), file.describe());
        if let Ok(tokenizer) = file.tokenizer() {
            let _ = tokenizer.encode_text("Hello <|im_end|> world");
        }
    }
}

fn gguf(cases: u64) {
    for name in ["llama3_q8_0", "qwen3_q4_0", "phi3_longrope_q8_0"] {
        let bytes = fs_err::read(fixture(&format!("gguf/{name}.gguf"))).unwrap();
        let header = header_of(&bytes);
        mutate(name, &bytes, header, cases, read_gguf);
    }
}

/// Where the data begins: no file is taken that is cut in its header.
fn header_of(bytes: &[u8]) -> usize {
    let name = b"output_norm.weight";
    bytes.windows(name.len()).position(|part| part == name).unwrap() + 64
}

fn safetensors(cases: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for file in ["config.json", "model.safetensors"] {
        fs_err::copy(fixture("qwen3").join(file), path.join(file)).unwrap();
    }
    let tokenizer = br#"{"version": "1.0", "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
    fs_err::write(path.join("tokenizer.json"), tokenizer).unwrap();
    let source = ModelSource::Dir(path.to_owned());
    let weights = path.join("model.safetensors");
    let bytes = fs_err::read(&weights).unwrap();
    load(&source, &Device::Cpu, None).unwrap();
    mutate("safetensors", &bytes, json_header(&bytes), cases, |bytes| {
        fs_err::write(&weights, bytes).unwrap();
        let _ = load(&source, &Device::Cpu, None);
    });
}

fn json_header(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn adapters(cases: u64) {
    let folder = tempfile::tempdir().unwrap();
    let (path, from) = (folder.path(), fixture("qwen3/peft_all"));
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        fs_err::copy(from.join(file), path.join(file)).unwrap();
    }
    let decoder = decoder("qwen3");
    let check = |dir: &Path| LoraAdapter::load(dir, decoder.config(), &Device::Cpu).map(|_| ());
    check(path).unwrap();
    for (file, cases) in [(CONFIG_FILE, cases), (WEIGHTS_FILE, cases)] {
        let whole = fs_err::read(path.join(file)).unwrap();
        let header = if file == CONFIG_FILE { whole.len() } else { json_header(&whole) };
        mutate(file, &whole, header, cases, |bytes| {
            fs_err::write(path.join(file), bytes).unwrap();
            let _ = check(path);
        });
        fs_err::write(path.join(file), whole).unwrap();
    }
}

/// Marks to import: what is read keeps what the store relies on, and an error is one line.
fn marks(cases: u64) {
    let config = Config::defaults().unwrap();
    let reading =
        feedback_file::Reading { weights: &config.feedback, domain: None, mark: Mark::Good };
    let bytes = br#"{"messages":[{"role":"user","content":"q"}],"response":"a","mark":"fix","fix":"b","weight":3e0,"note":"n"}
{"id":1,"messages":[{"role":"system","content":"\u00e9"},{"role":"user","content":"q"}],"response":"a","mark":"good","domain":"rust"}"#;
    assert_eq!(feedback_file::read(&bytes[..], "f", reading).unwrap().rows.len(), 2);
    mutate("marks", bytes, bytes.len(), cases, |bytes| {
        match feedback_file::read(bytes, "f", reading) {
            Ok(marks) => {
                assert!(marks.rows.iter().all(|m| m.weight > 0.0 && m.weight.is_finite()));
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    });
}

/// A configuration file, and its lines as assignments.
fn configurations(cases: u64) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/workstation.toml");
    let text = fs_err::read_to_string(example).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let whole = lines.join("\n");
    let read = |bytes: &[u8]| {
        fs_err::write(&file, bytes).unwrap();
        let args = LoadArgs { config_file: Some(file.clone()), ..LoadArgs::default() };
        let read = Config::load(&args).map(|_| ()).map_err(|error| error.to_string());
        let overrides = String::from_utf8_lossy(bytes).lines().take(4).map(str::to_owned).collect();
        let args = LoadArgs { overrides, ..LoadArgs::default() };
        let _ = Config::load(&args).map_err(|error| error.to_string());
        read
    };
    read(whole.as_bytes()).unwrap();
    mutate("configuration", whole.as_bytes(), whole.len(), cases, |bytes| drop(read(bytes)));
}

/// What comes through the pipe of a worker.
fn frames(cases: u64) {
    let events: [Event<Measurements>; 3] = [
        Event::Heartbeat { silent_ms: 300 },
        Event::Progress {
            epoch: 1,
            epochs: 2,
            step: 3,
            total_steps: 4,
            loss: 0.5,
            elapsed_ms: 6,
            eta_ms: Some(7),
        },
        Event::Panicked { message: "m".to_owned(), location: "a:1:2".to_owned() },
    ];
    let bytes: Vec<u8> = events.iter().flat_map(|event| codec::encode(event).unwrap()).collect();
    mutate("frames", &bytes, bytes.len(), cases, |bytes| {
        let mut input = bytes;
        while let Ok(event) = codec::read_frame::<Event<Measurements>>(&mut input) {
            assert!(codec::encode(&event).is_ok());
        }
        let _ = codec::read_frame::<Request<JobInput>>(&mut &bytes[..]);
        let _ = codec::read_hello(&mut &bytes[..]);
    });
}

#[test]
fn marks_with_changed_bytes_are_taken_or_refused() {
    marks(5_000);
}

#[test]
fn configurations_with_changed_bytes_are_taken_or_refused() {
    configurations(300);
}

#[test]
fn frames_with_changed_bytes_are_taken_or_refused() {
    frames(20_000);
}

#[test]
fn gguf_files_with_changed_bytes_are_taken_or_refused() {
    gguf(3_000);
}

#[test]
fn safetensors_files_with_changed_bytes_are_taken_or_refused() {
    safetensors(500);
}

#[test]
fn adapters_with_changed_bytes_are_taken_or_refused() {
    adapters(500);
}

/// A whole file with its tokenizer, cut at every byte of its header and here and there in its data.
#[test]
fn a_gguf_file_cut_anywhere_is_refused() {
    let bytes = fs_err::read(fixture("gguf/qwen3_q4_0.gguf")).unwrap();
    let header = header_of(&bytes);
    for length in (0..header).chain((header..bytes.len()).step_by(997)) {
        let held = most(|| drop(gguf_kit::read(&bytes[..length]).unwrap_err()));
        assert!(held <= FIXED + FACTOR * length, "{length}: {held} bytes");
    }
}

/// Long arrays of what is shortest in the file: kept as vectors of texts or wide numbers they would take several times as
/// much.
#[test]
fn an_array_takes_no_more_memory_than_it_takes_of_the_file() {
    let long = |kind, item: &[u8], count: u64| {
        let length = [kind, count].map(|n: u64| n.to_le_bytes());
        let array = [&length[0][..4], &length[1], &item.repeat(count as usize)].concat();
        Gguf::new().value("array", ARRAY, &array).bytes()
    };
    let text = |length: usize| gguf_kit::text(&"x".repeat(length));
    for (what, bytes, factor) in [
        ("u32", long(4, &[1; 4], 2_000_000), 1.0),
        ("i32", long(5, &[1; 4], 2_000_000), 1.0),
        ("f32", long(6, &[1; 4], 2_000_000), 1.0),
        ("no text", long(8, &text(0), 1_000_000), 0.5),
        ("short texts", long(8, &text(1), 1_000_000), 0.75),
        // What it grows from and to are there at once.
        ("long texts", long(8, &text(100_000), 100), 2.2),
        ("other numbers", long(12, &[1; 8], 1_000_000), 0.0),
    ] {
        let held = most(|| drop(gguf_kit::read(&bytes).unwrap()));
        let limit = 10_000 + (factor * bytes.len() as f64) as usize;
        assert!(held <= limit, "{what}: {held} bytes for {}, at most {limit}", bytes.len());
    }
}

#[test]
fn vocabularies_larger_than_any_are_refused() {
    let tokens = vec!["a".to_owned(); (1 << 20) + 1];
    let file = Gguf::new().texts("tokenizer.ggml.tokens", &tokens).read().unwrap();
    let error = file.tokenizer().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.tokens: 1048577, more than 1048576"), "{error}");
}

#[test]
#[ignore = "minutes: as many mutations as time allows"]
fn many_mutations() {
    marks(500_000);
    configurations(20_000);
    frames(2_000_000);
    gguf(200_000);
    safetensors(20_000);
    adapters(20_000);
}
