use proptest::prelude::*;

use super::*;

fn ok(line: &str) -> Input {
    parse(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn refused(line: &str) -> String {
    parse(line).expect_err(line).to_string()
}

fn id(text: &str) -> AdapterId {
    text.parse().expect("a valid id")
}

#[test]
fn texts_are_texts_and_two_slashes_send_one() {
    assert_eq!(ok("  hello there "), Input::Text("hello there".into()));
    assert_eq!(ok("//etc is what?"), Input::Text("/etc is what?".into()));
    assert_eq!(ok("   "), Input::Empty);
}

#[test]
fn commands_take_their_arguments() {
    let mark = |mark, note: Option<&str>| {
        Input::Command(Command::Mark { mark, note: note.map(str::to_owned) })
    };
    assert_eq!(ok("/good"), mark(Mark::Good, None));
    assert_eq!(ok("/medium  too long "), mark(Mark::Medium, Some("too long")));
    assert_eq!(ok("/CRITICAL wrong name"), mark(Mark::Critical, Some("wrong name")));
    assert_eq!(ok("/fix It is Ada."), Input::Command(Command::Fix("It is Ada.".into())));
    let fix_of = |id, text: &str| Input::Command(Command::FixOf { id, text: text.into() });
    assert_eq!(ok("/fix #12 It is Ada."), fix_of(12, "It is Ada."));
    assert_eq!(ok("/fix #x is a tag"), Input::Command(Command::Fix("#x is a tag".into())));
    assert!(refused("/fix #12").contains("the better answer is missing"));
    assert_eq!(ok("/accept"), Input::Command(Command::Accept(None)));
    assert_eq!(ok("/accept #3"), Input::Command(Command::Accept(Some(3))));
    assert!(refused("/accept it").contains("no number of a mark"));
    assert_eq!(ok("/skip"), Input::Command(Command::Skip));
    assert_eq!(ok("/pending"), Input::Command(Command::Pending));
    let forget = |id, retrain| Input::Command(Command::Forget { id, retrain });
    assert_eq!(ok("/forget #7"), forget(7, false));
    assert_eq!(ok("/forget 7  retrain"), forget(7, true));
    assert!(refused("/forget retrain").contains("no number of a mark"));
    assert_eq!(ok("/jobs"), Input::Command(Command::Jobs(JobsCommand::List)));
    assert_eq!(ok("/jobs cancel #7"), Input::Command(Command::Jobs(JobsCommand::Cancel(7))));
    assert_eq!(ok("/jobs wait"), Input::Command(Command::Jobs(JobsCommand::Wait)));
    let adapters = |command| Input::Command(Command::Adapters(command));
    assert_eq!(ok("/adapters"), adapters(AdaptersCommand::List));
    assert_eq!(ok("/adapters load lora_1"), adapters(AdaptersCommand::Load(id("lora_1"))));
    assert_eq!(ok("/adapters unload"), adapters(AdaptersCommand::Unload(None)));
    assert_eq!(ok("/adapters rollback"), adapters(AdaptersCommand::Rollback { domain: None }));
}

#[test]
fn settings_are_shown_and_set_in_every_usual_spelling() {
    let set = |key: Option<&str>, value: Option<&str>| {
        Input::Command(Command::Set {
            key: key.map(str::to_owned),
            value: value.map(str::to_owned),
        })
    };
    assert_eq!(ok("/set"), set(None, None));
    assert_eq!(ok("/set seed"), set(Some("seed"), None));
    for line in ["/set seed 7", "/set seed=7", "/set seed = 7"] {
        assert_eq!(ok(line), set(Some("seed"), Some("7")), "{line}");
    }
    assert_eq!(ok("/set stop [\"a b\"]"), set(Some("stop"), Some("[\"a b\"]")));
}

#[test]
fn the_commands_about_the_model_take_the_rest_of_the_line() {
    let system = |command| Input::Command(Command::System(command));
    assert_eq!(ok("/model"), Input::Command(Command::Model(None)));
    assert_eq!(ok("/model /a b"), Input::Command(Command::Model(Some("/a b".into()))));
    assert_eq!(
        ok("/compare who are you?"),
        Input::Command(Command::Compare("who are you?".into()))
    );
    assert_eq!(ok("/system"), system(SystemCommand::Show));
    assert_eq!(ok("/system off"), system(SystemCommand::Off));
    assert_eq!(ok("/system off with you"), system(SystemCommand::Set("off with you".into())));
}

#[test]
fn an_unknown_command_gets_its_nearest_match() {
    for (typed, meant) in
        [("/god", "good"), ("/critcal x", "critical"), ("/adapter", "adapters"), ("/exit", "fix")]
    {
        let message = refused(typed);
        if meant == "fix" {
            assert!(message.starts_with("unknown command /exit"), "{message}");
        } else {
            assert!(message.ends_with(&format!("did you mean /{meant}?")), "{message}");
        }
    }
    for later in ["/memory", "/save x"] {
        let message = refused(later);
        assert!(!message.contains("did you mean"), "{message}");
        assert!(message.contains(": /help lists the commands"), "{message}");
    }
    let message = refused("/usr/bin is what");
    assert!(message.contains("//"), "the way to send a slash is named: {message}");
}

#[test]
fn wrong_arguments_say_how_it_is_used() {
    for (line, words) in [
        ("/fix", "the better answer is missing: use /fix [#ID] TEXT"),
        ("/forget", "the number of the mark is missing: use /forget ID [retrain]"),
        ("/forget it", "\"it\" is no number of a mark: use /forget ID [retrain]"),
        ("/undo 3", "/undo takes no arguments: use /undo"),
        ("/jobs cancel", "the number of the job is missing"),
        ("/jobs cancel x", "\"x\" is no number"),
        ("/jobs drop", "/jobs does not know \"drop\""),
        ("/adapters load", "the id of the adapter is missing"),
        ("/adapters load ../x", "invalid adapter id"),
        ("/train Not A Name", "is no name of a domain"),
        ("/compare", "the question is missing: use /compare PROMPT"),
        ("/eval", "the id of the adapter is missing: use /eval ADAPTER [OTHER]"),
        ("/eval a b c", "/eval does not know \"a b c\""),
        ("/run", "the command is missing: use /run COMMAND [ARGUMENTS]"),
        ("/adapters show a", "/run adapters show a does it"),
        ("/jobs watch", "/run jobs watch does it"),
        ("/run feedback edit 3 --fix \"half", "a quotation mark is not closed"),
    ] {
        let message = refused(line);
        assert!(message.contains(words), "{line}: {message}");
    }
}

#[test]
fn other_commands_of_the_program_are_taken_as_a_shell_would() {
    let run = |words: &[&str]| {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Ok(Input::Command(Command::Run(words)))
    };
    assert_eq!(
        parse("/run feedback edit 3  --fix \"say `it's`, then \\\"why\\\"\""),
        run(&["feedback", "edit", "3", "--fix", "say `it's`, then \"why\""])
    );
    assert_eq!(parse("/eval a"), run(&["eval", "--adapter", "a", "--against", "base"]));
    assert_eq!(parse("/eval a b"), run(&["eval", "--adapter", "a", "--against", "b"]));
}

#[test]
fn every_command_has_help_and_parses_by_its_name() {
    for help in COMMANDS {
        assert!(help.usage.starts_with(&format!("/{}", help.name)));
        assert_eq!(help_of(help.name), Ok(help));
        let line = format!("/{}", help.name);
        assert!(!matches!(parse(&line), Err(InputError::Unknown { .. })), "{line}");
    }
}

proptest! {
    #[test]
    fn any_line_is_understood_or_refused_on_one_line(line in "[^\n\r]*") {
        if let Err(error) = parse(&line) {
            prop_assert!(!crate::text::printable_line(&error.to_string()).is_empty());
        }
    }

    #[test]
    fn what_does_not_begin_with_a_slash_is_sent_as_it_is(line in "[^/\\s][^\n\r]*") {
        prop_assert_eq!(parse(&line), Ok(Input::Text(line.trim().to_owned())));
    }
}
