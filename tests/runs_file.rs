//! Runs files: what a job takes from them, and what each mistake is told.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

use std::path::Path;

use shammah::config::{Auto, Config, Runs, StartFrom};

fn load(text: &str) -> Result<Runs, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs.toml");
    fs_err::write(&path, text).unwrap();
    let mut lora = Config::defaults().unwrap().lora;
    lora.training.epochs = 7;
    let place = format!("{}/", folder.path().display());
    Runs::load(&path, &lora).map_err(|error| error.to_string().replace(&place, ""))
}

#[test]
fn a_jobs_values_lie_over_the_configuration() {
    let text = r#"
# Comments are fine.
[[job]]
name = "gentle"
data = "marks.jsonl"
domain = "rust"
from = "fresh"
learning_rate = 1e-3
rank = 4

[[job]]
"#;
    let runs = load(text).unwrap();
    let [first, second] = runs.jobs.as_slice() else { panic!("{runs:?}") };
    assert_eq!(first.name.as_ref().map(|name| name.as_str()), Some("gentle"));
    assert_eq!(first.domain.as_deref(), Some("rust"));
    assert_eq!(first.data.as_deref(), Some(runs.path.with_file_name("marks.jsonl").as_path()));
    assert_eq!((first.from, first.line), (Some(StartFrom::Fresh), 3));
    assert_eq!((first.lora.training.learning_rate, first.lora.rank), (Auto::Value(1e-3), 4));
    assert_eq!(first.lora.training.epochs, 7, "what it does not say is the configuration's");
    assert_eq!((second.name.as_ref(), second.from, second.line), (None, None, 11));
    assert_eq!(second.lora.training.learning_rate, Auto::Auto);
    let absolute = load("[[job]]\ndata = \"/a/b.jsonl\"").unwrap();
    assert_eq!(absolute.jobs[0].data.as_deref(), Some(Path::new("/a/b.jsonl")));
}

#[test]
fn each_mistake_names_file_job_key_and_what_would_be_right() {
    for (text, message) in [
        (
            "[[job]]\nrank = 4\n[[job]]\nlearning_rate = 3.0",
            "runs.toml:4: job 2: lora.training.learning_rate = 3.0 is not allowed: it must be \"auto\" or a number from 0.0000001 to 1",
        ),
        (
            "[[job]]\nepochs = \"many\"",
            "runs.toml:2: job 1: lora.training.epochs is the text \"many\": it must be a whole number from 1 to 1000",
        ),
        (
            "[[job]]\nlearningrate = 1e-3",
            "runs.toml:2: job 1: unknown key \"learningrate\": did you mean \"learning_rate\"?",
        ),
        (
            "[[job]]\nfrom = \"old\"",
            "runs.toml:2: job 1: lora.training.from = \"old\" is not allowed: it must be \"continue\", \"fresh\" or \"delta\"",
        ),
        (
            "[[job]]\nname = \"No Name\"",
            "runs.toml:2: job 1: name = \"No Name\" is not allowed: it must be 1 to 64 of a-z, 0-9, '_' and '-', starting with a letter or digit, and not a number",
        ),
        ("[[job]]\ndata = 3", "runs.toml:2: job 1: data is the whole number 3: it must be a text"),
        (
            "[[job]]\nname = \"a\"\n\n[[job]]\nname = \"a\"",
            "runs.toml:4: job 2: name is \"a\", as that of job 1: give each job its own",
        ),
        (
            "[job]\nrank = 4",
            "runs.toml:1: unknown key \"job\": a runs file has only jobs, each begun with a line [[job]]",
        ),
        (
            "rank = 4\n[[job]]",
            "runs.toml:1: unknown key \"rank\": a runs file has only jobs, each begun with a line [[job]]",
        ),
        ("", "runs file runs.toml: it has no job: begin each one with a line [[job]]"),
    ] {
        assert_eq!(load(text).unwrap_err(), message, "{text}");
    }
    let message = load("[[job]]\ncolour = 1").unwrap_err();
    assert!(message.contains("a job has name, data, domain, rank,"), "{message}");
    let message = load("[[job]]\n[job.training]\nepochs = 1").unwrap_err();
    assert!(message.contains("job 1: unknown key \"training\""), "{message}");
    let message = load("[[job]]\nrank = ").unwrap_err();
    assert!(message.starts_with("runs.toml:2: not valid TOML"), "{message}");
    let lora = Config::defaults().unwrap().lora;
    let message = Runs::load(Path::new("/no/runs.toml"), &lora).unwrap_err().to_string();
    assert_eq!(message, "runs file /no/runs.toml: it does not exist: check the path");
}
