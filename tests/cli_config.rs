//! `shammah config`, and the exit codes of a wrong command line or configuration.

mod support;

use support::{Program, mode};

#[test]
fn show_prints_each_value_with_its_origin() {
    let program = Program::new();
    let file = program.write("given.toml", "[lora]\nrank = 4\n");
    let args =
        ["config", "show", "--json", "--config", &file, "--set", "lora.alpha=8", "--device", "cpu"];
    let run = program.run_with_env(&args, &[("SHAMMAH__QUEUE__MAX_QUEUED", "9")]).done();
    let all = run.json();
    let value =
        |key: &str| (all[key]["value"].clone(), all[key]["origin"].as_str().unwrap().to_owned());
    assert_eq!(value("lora.rank"), (4.into(), format!("{file}:2")));
    assert_eq!(value("lora.alpha"), (8.0.into(), "--set".to_owned()));
    assert_eq!(value("model.device"), ("cpu".into(), "--device".to_owned()));
    let variable = "environment variable SHAMMAH__QUEUE__MAX_QUEUED".to_owned();
    assert_eq!(value("queue.max_queued"), (9.into(), variable));
    assert_eq!(value("lora.training.learning_rate").0, "auto");
    assert!(value("lora.training.learning_rate").1.starts_with("default.toml (built in):"));

    let table = program.run(&["config", "show"]).done().stdout;
    assert!(table.lines().next().unwrap().starts_with("KEY "), "{table}");
    assert_eq!(table.lines().count() - 1, all.as_object().unwrap().len());
}

#[test]
fn what_a_console_runs_has_the_consoles_options() {
    let program = Program::new();
    let file = program.write("given.toml", "[lora]\nrank = 4\n");
    let other = program.home().with_extension("other").display().to_string();
    let options = ["--home", &other, "--config", &file, "--set", "lora.alpha=8", "--device", "cpu"];
    let console = [&options[..], &["--model", "builtin", "chat"]].concat();
    let run = program.run_with_input(&console, "/run config show\n/run config path\n").done();
    let origin = |key: &str| run.stdout.lines().find(|line| line.starts_with(key)).unwrap_or("");
    assert!(origin("lora.rank ").contains(&format!("{file}:2")), "{}", run.stdout);
    assert!(origin("lora.alpha ").contains("--set"), "{}", run.stdout);
    assert!(origin("model.device ").contains("--device"), "{}", run.stdout);
    assert!(origin("model.source ").contains("--model"), "{}", run.stdout);
    assert!(run.stdout.contains(&format!("{other}/config.toml")), "{}", run.stdout);
    assert!(!program.home().exists());
}

#[test]
fn showing_and_checking_make_no_data_directory() {
    let program = Program::new();
    program.run(&["config", "show"]).done();
    program.run(&["config", "path"]).done();
    let text = program.run(&["config", "check"]).done().stdout;
    assert!(text.starts_with("the configuration is valid: "), "{text}");
    assert!(!program.home().exists());
}

#[test]
fn init_writes_the_defaults_for_the_owner_alone_and_never_twice() {
    let program = Program::new();
    program.run(&["config", "init"]).done();
    let path = program.home().join("config.toml");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&program.home()), 0o700);
    let check = program.run(&["config", "check", "--json"]).done().json();
    assert_eq!(check["valid"], true);
    assert_eq!(check["defaults"], 0, "every value now comes from the file");
    assert_eq!(check["changed"], 0, "and is what it was");
    let text = program.run(&["config", "check", "--set", "lora.rank=4"]).done().stdout;
    assert!(text.ends_with(" keys, 1 of them changed\n"), "{text}");
    let printed = program.run(&["config", "path"]).done().stdout;
    assert_eq!(printed.trim_end(), path.to_str().unwrap());

    let message = program.run(&["config", "init"]).failed(2);
    assert!(message.contains("exists already"), "{message}");
}

#[test]
fn a_wrong_configuration_exits_2_with_its_place() {
    let program = Program::new();
    let file = program.write("bad.toml", "[lora]\nrnak = 4\n");
    let expected = format!("{file}:2: unknown key \"lora.rnak\": did you mean \"lora.rank\"?");
    for command in [&["config", "check"][..], &["jobs", "list"], &["feedback", "stats"]] {
        let mut args = command.to_vec();
        args.extend(["--config", &file]);
        assert_eq!(program.run(&args).failed(2), expected);
    }
    let message = program.run(&["config", "check", "--model", "/no/such/model"]).failed(2);
    for part in ["model.source", "--model", "no such model directory", "builtin"] {
        assert!(message.contains(part), "{message}");
    }
    let message = program.run(&["config", "check", "--config", "/no/such.toml"]).failed(2);
    assert!(message.contains("/no/such.toml does not exist"), "{message}");
    let message = program.run(&["config", "check", "--device", "gpu"]).failed(2);
    assert!(message.starts_with("--device: model.device = \"gpu\""), "{message}");
    let message = program.run(&["config", "check", "--set", "lora.rank=0"]).failed(2);
    assert!(message.starts_with("--set: lora.rank = 0"), "{message}");
}

#[test]
fn a_wrong_command_line_exits_2_and_help_exits_0() {
    let program = Program::new();
    for args in [
        &["no-such-command"][..],
        &["jobs"],
        &["jobs", "show"],
        &["adapters", "show", "../x"],
        &["feedback", "add", "--prompt", "q", "--response", "a", "--mark", "great"],
        &["config", "show", "-v", "-q"],
    ] {
        let run = program.run(args);
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
        assert_eq!(run.stdout, "");
        assert!(!run.stderr.is_empty());
    }
    for args in [&["--help"][..], &["--version"], &["config", "--help"]] {
        let run = program.run(args);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
    }
    let help = program.run(&["--help"]).stdout;
    assert!(!help.contains("worker"), "the worker is internal");
}

#[test]
fn control_characters_of_foreign_text_do_not_reach_the_terminal() {
    let program = Program::new();
    let run = program.run(&["config", "check", "--set", "a\u{1b}[2J.b=1"]);
    assert_eq!(run.code, 2);
    assert!(!run.stderr.contains('\u{1b}'), "{:?}", run.stderr);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let program = Program::new();
    let mut command = program.command(&["config", "show"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
