//! The configuration: defaults, layers, origins, and the exact message of every mistake.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use shammah::config::{
    Auto, Config, ConfigError, DEFAULT_TOML, DeviceChoice, Flag, LoadArgs, Loaded, Origin, Seed,
    Weighting,
};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/samples")
}

fn load_file(name: &str) -> Result<Loaded, ConfigError> {
    Config::load(&LoadArgs { config_file: Some(samples().join(name)), ..LoadArgs::default() })
}

fn load_env(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let pair = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    Config::load(&LoadArgs { env: variables.iter().map(pair).collect(), ..LoadArgs::default() })
}

fn load_set(texts: &[&str]) -> Result<Loaded, ConfigError> {
    let overrides = texts.iter().map(|text| (*text).to_owned()).collect();
    Config::load(&LoadArgs { overrides, ..LoadArgs::default() })
}

#[test]
fn every_key_of_the_defaults_is_documented_with_its_range() {
    let mut comment = String::new();
    let mut keys = 0;
    for line in DEFAULT_TOML.lines() {
        if let Some(text) = line.strip_prefix('#') {
            comment.push_str(text);
            comment.push('\n');
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys += 1;
            let lines: Vec<&str> = comment.lines().collect();
            assert!(lines.len() >= 2, "{key} has no reason beside its range");
            assert!(lines.last().unwrap().starts_with(" Range: "), "{key} has no range");
            comment.clear();
        } else {
            assert!(line.is_empty() || line.starts_with('['), "unexpected line {line:?}");
            comment.clear();
        }
    }
    assert_eq!(keys, Config::load(&LoadArgs::default()).unwrap().origins.len());
}

#[test]
fn the_seeds_defaults_are_kept_where_learning_md_keeps_them() {
    let config = Config::defaults().unwrap();
    assert_eq!((config.lora.rank, config.lora.alpha, config.lora.dropout), (16, 32.0, 0.1));
    assert_eq!(config.lora.target_modules.len(), 7);
    let training = &config.lora.training;
    assert_eq!((training.batch_size, training.epochs, training.seed), (4, 3, 42));
    assert_eq!((training.learning_rate, training.min_steps), (Auto::Auto, Auto::Auto));
    assert_eq!(training.auto_train_threshold, 10);
    let feedback = &config.feedback;
    assert_eq!(feedback.buffer_limit, 100);
    let weights = [feedback.weight_good, feedback.weight_medium, feedback.weight_critical];
    assert_eq!(weights, [1.0, 3.0, 10.0]);
    assert_eq!(feedback.weight_fix, 3.0);
}

#[test]
fn valid_samples_load() {
    let empty = load_file("valid_empty.toml").unwrap();
    assert_eq!(empty.config, Config::defaults().unwrap());

    let small = load_file("valid_small.toml").unwrap().config;
    assert_eq!(small.model.device, DeviceChoice::Cpu);
    assert_eq!(small.generation.temperature, 0.0);
    assert_eq!(small.generation.seed, Seed::Fixed(1000));
    assert_eq!(small.generation.stop, ["\n\n", "User:"]);
    assert_eq!((small.lora.rank, small.lora.alpha), (8, 16.0));
    assert_eq!(small.lora.training.learning_rate, Auto::Value(2e-4));
    assert_eq!(small.lora.training.min_steps, Auto::Value(30));
    assert_eq!(small.lora.training.weighting, Weighting::Sampling);
    assert_eq!(small.lora.training.epochs, 3, "what is not named keeps its default");
    assert_eq!(small.domains["rust"].description.as_deref(), Some("questions about Rust"));
    assert_eq!(small.domains["python"].description, None);
    assert!(small.domains.contains_key("general"));
}

#[test]
fn every_invalid_sample_gives_its_message() {
    let snapshot = include_str!("../config/samples/errors.txt");
    let mut expected: Vec<(String, String)> = Vec::new();
    for line in snapshot.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, message) = line.split_once(": ").expect("NAME: MESSAGE");
        expected.push((name.to_owned(), message.to_owned()));
    }
    let names: BTreeSet<String> = fs_err::read_dir(samples())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("invalid_"))
        .collect();
    let listed: BTreeSet<String> = expected.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, listed, "each invalid sample has one line in errors.txt");

    let folder = format!("{}/", samples().display());
    let got: Vec<(String, String)> = expected
        .iter()
        .map(|(name, _)| {
            let error = load_file(name).expect_err(name).to_string();
            assert!(!error.contains('\n'), "{name}: one line");
            (name.clone(), error.replace(&folder, ""))
        })
        .collect();
    let show = |pairs: &[(String, String)]| {
        pairs.iter().map(|(name, text)| format!("{name}: {text}\n")).collect::<String>()
    };
    assert_eq!(got, expected, "errors.txt should read:\n{}", show(&got));
}

#[test]
fn later_layers_win_and_each_value_knows_its_origin() {
    let folder = tempfile::tempdir().unwrap();
    let user = folder.path().join("config.toml");
    fs_err::write(
        &user,
        "[lora]\nrank = 2\nalpha = 3\n[generation]\ntop_k = 2\nmax_tokens = 2\nmin_p = 0.2\n",
    )
    .unwrap();
    let file = folder.path().join("given.toml");
    fs_err::write(&file, "[generation]\ntop_k = 3\nmax_tokens = 3\nmin_p = 0.3\n[lora]\nrank = 3")
        .unwrap();
    let env = |name: &str, value: &str| (format!("SHAMMAH__{name}"), value.to_owned());
    let loaded = Config::load(&LoadArgs {
        home: Some(folder.path().to_owned()),
        config_file: Some(file.clone()),
        env: vec![
            env("GENERATION__TOP_K", "4"),
            env("GENERATION__MAX_TOKENS", "4"),
            env("GENERATION__MIN_P", "0.4"),
            ("SHAMMAH_HOME".to_owned(), "/elsewhere".to_owned()),
            ("PATH".to_owned(), "/bin".to_owned()),
        ],
        overrides: vec!["generation.max_tokens=5".to_owned(), "generation.min_p=0.5".to_owned()],
        flags: vec![Flag { name: "--min-p", key: "generation.min_p", value: "0.6".to_owned() }],
    })
    .unwrap();
    let config = &loaded.config;
    assert_eq!(config.lora.dropout, 0.1);
    assert_eq!(config.lora.alpha, 3.0);
    assert_eq!(config.lora.rank, 3);
    assert_eq!(config.generation.top_k, 4);
    assert_eq!(config.generation.max_tokens, 5);
    assert_eq!(config.generation.min_p, 0.6);

    let origin = |key: &str| loaded.origins[key].to_string();
    assert!(origin("lora.dropout").starts_with("default.toml (built in):"));
    assert_eq!(origin("lora.alpha"), format!("{}:3", user.display()));
    assert_eq!(origin("lora.rank"), format!("{}:6", file.display()));
    assert_eq!(origin("generation.top_k"), "environment variable SHAMMAH__GENERATION__TOP_K");
    assert_eq!(origin("generation.max_tokens"), "--set");
    assert_eq!(origin("generation.min_p"), "--min-p");
    assert_eq!(loaded.origins["generation.max_tokens"], Origin::Set);
}

#[test]
fn a_home_without_a_file_is_fine_and_a_missing_given_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let home = Some(folder.path().to_owned());
    assert!(Config::load(&LoadArgs { home, ..LoadArgs::default() }).is_ok());
    let error = load_file("no_such.toml").unwrap_err();
    assert!(matches!(error, ConfigError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("--config"));
    let error = load_file("").unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }), "a directory is no file: {error}");
}

#[test]
fn environment_values_are_read_as_their_keys_want_them() {
    let config = load_env(&[
        ("SHAMMAH__LORA__TRAINING__LEARNING_RATE", "3e-4"),
        ("SHAMMAH__LORA__TRAINING__AUTO_TRAIN", "false"),
        ("SHAMMAH__LORA__TRAINING__MIN_STEPS", "auto"),
        ("SHAMMAH__LORA__TARGET_MODULES", "q_proj, v_proj"),
        ("SHAMMAH__GENERATION__SYSTEM", "Be brief. \"Really\"."),
        ("SHAMMAH__GENERATION__STOP", "[\"a,b\", \"\\n\"]"),
        ("SHAMMAH__MODEL__SOURCE", "42"),
        ("SHAMMAH__DOMAINS__RUST__DESCRIPTION", "1"),
    ])
    .unwrap()
    .config;
    assert_eq!(config.lora.training.learning_rate, Auto::Value(3e-4));
    assert!(!config.lora.training.auto_train);
    assert_eq!(config.lora.training.min_steps, Auto::Auto);
    assert_eq!(config.lora.target_modules, ["q_proj", "v_proj"]);
    assert_eq!(config.generation.system, "Be brief. \"Really\".");
    assert_eq!(config.generation.stop, ["a,b", "\n"]);
    assert_eq!(config.model.source, "42", "a path of digits is a text");
    assert_eq!(config.domains["rust"].description.as_deref(), Some("1"));
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    for (name, value, message) in [
        (
            "SHAMMAH__LORA__RANKS",
            "8",
            "environment variable SHAMMAH__LORA__RANKS: unknown key \"lora.ranks\": did you mean \"lora.rank\"?",
        ),
        (
            "SHAMMAH__LORA__RANK",
            "eight",
            "environment variable SHAMMAH__LORA__RANK: lora.rank is the text \"eight\": it must be a whole number from 1 to 256",
        ),
        (
            "SHAMMAH__LORA__RANK",
            "",
            "environment variable SHAMMAH__LORA__RANK: lora.rank is the text \"\": it must be a whole number from 1 to 256",
        ),
    ] {
        assert_eq!(load_env(&[(name, value)]).unwrap_err().to_string(), message);
    }
}

#[test]
fn set_reads_types_and_the_last_one_wins() {
    let config = load_set(&[
        "lora.rank=4",
        "lora.rank = 8",
        "generation.system=a=b",
        "generation.stop=x,y",
        "generation.seed=random",
        "console.show_usage=true",
        "lora.gate.max_kl=1",
        "lora.training.weighting=\"sampling\"",
    ])
    .unwrap()
    .config;
    assert_eq!(config.lora.rank, 8);
    assert_eq!(config.generation.system, "a=b");
    assert_eq!(config.generation.stop, ["x", "y"]);
    assert_eq!(config.generation.seed, Seed::Random);
    assert!(config.console.show_usage);
    assert_eq!(config.lora.gate.max_kl, 1.0);
    assert_eq!(config.lora.training.weighting, Weighting::Sampling);
}

#[test]
fn mistakes_in_set_say_what_would_be_right() {
    for (text, message) in [
        (
            "lora.rank",
            "--set \"lora.rank\" has no \"=\": write --set KEY=VALUE, as in --set lora.rank=8",
        ),
        (
            "lora.rank=0",
            "--set: lora.rank = 0 is not allowed: it must be a whole number from 1 to 256",
        ),
        ("rank=4", "--set: unknown key \"rank\": did you mean \"lora.rank\"?"),
        (
            "lora=4",
            "--set: lora is the text \"4\": it must be a section: write [lora] and its keys below",
        ),
        (
            "log.level=loud",
            "--set: log.level = \"loud\" is not allowed: it must be \"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
        ),
    ] {
        assert_eq!(load_set(&[text]).unwrap_err().to_string(), message);
    }
}

#[test]
fn an_enormous_file_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.toml");
    let file = fs_err::File::create(&path).unwrap();
    file.set_len(2 << 20).unwrap();
    let error =
        Config::load(&LoadArgs { config_file: Some(path), ..LoadArgs::default() }).unwrap_err();
    assert!(matches!(error, ConfigError::TooBig { .. }), "{error}");
}

#[test]
fn a_job_may_change_its_own_hyper_parameters() {
    let lora = Config::defaults().unwrap().lora;
    let changes = |text: &str| serde_json::from_str::<serde_json::Map<_, _>>(text).unwrap();
    let changed = lora.with_changes(&changes(r#"{"epochs": 5, "rank": 4, "learning_rate": 1e-3}"#));
    let changed = changed.unwrap();
    assert_eq!((changed.training.epochs, changed.rank), (5, 4));
    assert_eq!(changed.training.learning_rate, Auto::Value(1e-3));
    assert_eq!(changed.training.batch_size, lora.training.batch_size);
    for (text, message) in [
        (
            r#"{"epochs": 0}"#,
            "the job's request: lora.training.epochs = 0 is not allowed: it must be a whole number from 1 to 1000",
        ),
        (
            r#"{"epoch": 5}"#,
            "the job's request: unknown key \"lora.training.epoch\": did you mean \"lora.training.epochs\"?",
        ),
        (
            r#"{"training": {"epochs": 5}}"#,
            "the job's request: unknown key \"lora.training.training\": did you mean \"lora.training.revisions\"?",
        ),
    ] {
        assert_eq!(lora.with_changes(&changes(text)).unwrap_err().to_string(), message);
    }
}

#[test]
fn the_example_for_a_workstation_loads_and_has_several_domains() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/workstation.toml");
    let args = LoadArgs { config_file: Some(file.clone()), ..LoadArgs::default() };
    let loaded = Config::load(&args).unwrap();
    let domains: Vec<&str> = loaded.config.domains.keys().map(String::as_str).collect();
    assert_eq!(domains, ["general", "operations", "rust", "writing"]);
    assert!(loaded.config.domains.values().all(|domain| domain.description.is_some()));
    assert_eq!(loaded.config.queue.keep_adapters, 20);
    // Each section of the file is one that it explains, and each of its keys comes from it.
    let text = std::fs::read_to_string(file).unwrap();
    let keys = text.lines().filter(|line| !line.starts_with('#') && line.contains(" = ")).count();
    let from_file = |origin: &&Origin| matches!(origin, Origin::File { path, .. } if path.ends_with("workstation.toml"));
    assert_eq!(loaded.origins.values().filter(from_file).count(), keys);
}
