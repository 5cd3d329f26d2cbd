//! Piped sessions of the console, whole: what goes in, what comes out, which exit code.

mod console_kit;

use std::io::Cursor;

use std::time::Duration;

use console_kit::{Person, Script, Transcript, piped};

fn session(lines: &str) -> Transcript {
    piped(Cursor::new(lines.as_bytes().to_vec()), Script::default())
}

#[test]
fn a_session_of_marks_reads_as_a_transcript() {
    let said = session(
        "What is your name?\n/critical hopeless\n/fix I am Ada.\n\nhello\n/good\n/medium\n/undo\n/undo\n",
    );
    assert_eq!(
        said.out,
        "You said: What is your name?\n\
         Marked critical (weight 10, #1): hopeless\n\
         Waiting for a correction: /fix TEXT gives it.\n\
         Training buffer: 1 example (10.0 weighted) · 0 of 10 for a training · 1 waiting for a correction\n\
         Answering again with the note in mind, 4 times (going on stops it):\n\
         Again: hopeless\n\
         No revision: it gave only the same answer again, or none that was complete.\n\
         Mark 1 waits for a correction: /fix TEXT says what the answer should have been.\n\
         Corrected the critical mark (weight 10, #1): hopeless\n\
         Training buffer: 1 example (10.0 weighted) · 1 of 10 for a training\n\
         You said: hello\n\
         Marked good (weight 1, #2)\n\
         Training buffer: 2 examples (11.0 weighted) · 2 of 10 for a training\n\
         Marked medium (weight 3, #2), without a note\n\
         Waiting for a correction: /fix TEXT gives it.\n\
         Training buffer: 2 examples (13.0 weighted) · 1 of 10 for a training · 1 waiting for a correction\n\
         The last change of mark 2 is taken back: good again, without a fix.\n\
         Training buffer: 2 examples (11.0 weighted) · 2 of 10 for a training\n\
         Mark 2 is taken back.\n\
         Training buffer: 1 example (10.0 weighted) · 1 of 10 for a training\n"
    );
    assert_eq!((said.errors.as_str(), said.code), ("", 0));
}

#[test]
fn a_job_is_waited_for_and_reported_sparsely() {
    let said = session("hello\n/good\n/train\n/jobs wait\nhello again\n");
    let tail = said.out.split_once("Job 1 queued").expect("queued").1;
    assert!(tail.starts_with(": 1 example, domain general.\n"), "{tail}");
    assert_eq!(tail.matches("Job 1: epoch").count(), 4, "{tail}");
    assert!(tail.contains("Job 1 started: training on 1 example in the background.\n"));
    let told = "Waiting for job 1 (";
    assert_eq!(tail.matches(told).count(), 1, "{tail}");
    let end = "Job 1 finished: 1 example, final loss 0.2500\n\
               2 better, 0 worse (held-out loss 2.00 → 1.00)\n\
               Adapter lora_1 is live: /data/adapters/lora_1\n\
               Waited for 1 job.\n\
               You said: hello again\n";
    assert!(tail.ends_with(end), "{tail}");
    assert_eq!((said.errors.as_str(), said.code), ("", 0));
}

#[test]
fn a_rejected_job_ends_with_its_own_code() {
    let script = Script { rejected: true, ..Script::default() };
    let lines = "hello\n/good\n/train\n/jobs wait\n";
    let said = piped(Cursor::new(lines.as_bytes().to_vec()), script);
    assert!(said.out.contains("Job 1 rejected: 1 example"), "{}", said.out);
    assert!(said.out.contains("\n- too far from the base\n"));
    assert_eq!(said.code, 3);
}

#[test]
fn errors_are_named_the_session_goes_on_and_the_code_tells() {
    for (line, error) in [
        ("/god", "error: unknown command /god: did you mean /good?\n"),
        ("/good", "error: there is no answer to mark yet: say something first\n"),
        ("/fix x", "error: there is no answer to correct yet: say something first\n"),
        ("/adapters load lora_9", "error: there is no adapter lora_9: /adapters lists them\n"),
        ("/jobs cancel 9", "error: there is no job 9: /jobs lists them\n"),
        ("/set temperature 9", "error: /set: generation.temperature = 9"),
        ("/train", "error: nothing to train: "),
        ("fail", "error: the context is full: /clear starts anew\n"),
    ] {
        let said = session(&format!("{line}\nhello\n"));
        assert!(said.errors.starts_with(error), "{line}: {}", said.errors);
        assert_eq!(said.errors.lines().count(), 1, "{line}");
        assert_eq!(said.out, "You said: hello\n", "{line}");
        assert_eq!(said.code, 1, "{line}");
    }
}

#[test]
fn another_command_of_the_program_says_what_it_says_and_its_failure_counts() {
    let said = session("/run --version\nhello\n");
    let version = format!("shammah {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((said.out, said.code), (format!("{version}You said: hello\n"), 0));
    let said = session("/run nonsense\nhello\n");
    assert_eq!((said.out.as_str(), said.code), ("You said: hello\n", 1));
    assert!(said.errors.contains("unrecognized subcommand 'nonsense'"), "{}", said.errors);
    let last = said.errors.lines().last();
    assert_eq!(last, Some("error: \"nonsense\" ended with exit status: 2"));
    for line in ["/run chat", "/run -q", "/run --quiet chat"] {
        let said = session(&format!("{line}\n"));
        let why = "shammah: a console runs already: open another in a terminal of its own\n";
        assert!(said.errors.starts_with(why) && said.code == 1, "{line}: {}", said.errors);
    }
    let help = session("/run --help\n");
    assert!(help.code == 0 && help.out.contains("Commands:"), "{}", help.out);
}

#[test]
fn ctrl_c_ends_a_command_that_runs_beside_the_chat() {
    let home = tempfile::tempdir().expect("a directory");
    let mut person = Person::sits(Script::default());
    let watch = format!("jobs run --home {}", home.path().display());
    person.types(&format!("/run {watch}"));
    person.reads("running the queue of");
    person.types("hello");
    person.reads("hello");
    // The answer has ended then: Ctrl-C would stop that first.
    person.types("/good");
    person.reads("Marked good");
    person.types("/run stats");
    person.reads(&format!("error: \"{watch}\" runs already"));
    person.interrupts();
    person.reads(&format!("Stopped \"{watch}\"."));
    // Nothing is in its way now.
    person.types("/run --version");
    person.reads("shammah ");
    person.leaves();
}

#[test]
fn enter_does_not_take_what_a_weak_model_made() {
    let mut person = Person::sits(Script { builtin: true, ..Script::default() });
    person.types("name?");
    person.reads("name?");
    person.types("/critical say Ada");
    person.reads("This model is too weak to revise well: /fix TEXT");
    person.types("");
    person.reads("Enter does not take");
    person.types("/accept");
    person.reads("Accepted: the critical mark");
    person.leaves();
}

#[test]
fn a_failed_question_leaves_the_conversation_as_it_was() {
    let said = session("hello\nfail\n/good\n");
    assert!(said.out.contains("Marked good"), "the mark is for the answer to hello: {}", said.out);
}

#[test]
fn settings_are_shown_and_hold() {
    let said = session("/set seed 7\n/set auto_train off\nhello\n/good\n/set seed\n");
    assert_eq!(
        said.out,
        "seed = 7\nauto_train = false\nYou said: hello\nMarked good (weight 1, #1)\n\
         Training buffer: 1 example (1.0 weighted) · /train starts a training\nseed = 7\n"
    );
    let all = session("/set\n").out;
    assert!(all.contains("temperature          = 0.3\n") && all.contains("max_tokens"), "{all}");
}

#[test]
fn two_slashes_send_a_text_and_clear_begins_anew() {
    let said = session("//etc is what?\n/clear\n/good\n");
    assert_eq!(said.out, "You said: /etc is what?\nA new conversation.\n");
    assert!(said.errors.contains("there is no answer to mark"));
}

#[test]
fn what_follows_quit_is_not_read() {
    let said = session("hello\n/quit\nhello again\n");
    assert_eq!((said.out.as_str(), said.code), ("You said: hello\n", 0));
}

#[test]
fn unreadable_lines_are_skipped_with_a_reason() {
    let input = b"ok\n\xff\xfe\nhello\n".to_vec();
    let said = piped(Cursor::new(input), Script::default());
    assert_eq!(said.out, "You said: ok\nYou said: hello\n");
    assert!(said.errors.contains("line 2 of the input is not UTF-8"), "{}", said.errors);
    assert_eq!(said.code, 1);
}

#[test]
fn control_characters_never_reach_the_output() {
    let said = session("hostile\n/good \u{1b}]0;title\u{7}nice\n/\u{1b}[2Jbad\n");
    for text in [&said.out, &said.errors] {
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
    assert!(said.out.starts_with("before "), "{}", said.out);
}

#[test]
fn nothing_in_nothing_out() {
    let said = session("");
    assert_eq!((said.out.as_str(), said.errors.as_str(), said.code), ("", "", 0));
}

#[test]
fn the_model_is_shown_and_changed_and_the_conversation_goes_on() {
    let said = session("who?\n/model\n/model other\nwho?\n/good\n/model broken\nwho?\n");
    assert_eq!(
        said.out,
        "parrot\n\
         model       parrot\nfrom        builtin\nfamily      llama\nparameters  3.4 M\nformat      f32\n\
         context     1024 tokens\ndevice      cpu\nadapter     none is live\n\
         Loading other: until it is ready, the old model answers.\n\
         other (3.4 M parameters, f32) answers from now on, and the conversation goes on. New marks and jobs belong to it.\n\
         No adapter: the model answers as it came.\n\
         other\n\
         Marked good (weight 1, #1)\n\
         Training buffer: 1 example (1.0 weighted) · 1 of 10 for a training\n\
         Loading broken: until it is ready, the old model answers.\n\
         other\n"
    );
    assert!(said.errors.contains("/models/broken: no such model directory"), "{}", said.errors);
    assert!(said.errors.contains("The old model stays") && said.errors.lines().count() == 1);
    assert_eq!(said.code, 1);
}

#[test]
fn a_system_message_holds_for_the_conversation() {
    let said = session(
        "/system\n/system be brief\nhello\n/system\n/system off\nhello\n/system x\n/clear\n/system\n",
    );
    assert_eq!(
        said.out,
        "There is no system message: /system TEXT sets one.\n\
         It holds from the next answer on, in this conversation.\n\
         [be brief] You said: hello\n\
         System message: be brief\n\
         No system message from the next answer on.\n\
         You said: hello\n\
         It holds from the next answer on, in this conversation.\n\
         A new conversation.\n\
         There is no system message: /system TEXT sets one.\n"
    );
    assert_eq!((said.errors.as_str(), said.code), ("", 0));
}

#[test]
fn a_model_without_a_system_role_says_so() {
    let said = session("/system be brief\n/model gemma\n/system off\n/system be kind\n");
    assert!(said.out.contains("takes no system message: /system off"), "{}", said.out);
    assert!(
        said.errors
            .starts_with("error: the chat template of model \"gemma\" takes no system message")
    );
}

#[test]
fn a_comparison_shows_both_answers_and_leaves_no_trace() {
    let script = Script { adapter: true, ..Script::default() };
    let lines = "hello\n/system be brief\n/compare who?\n/good\n";
    let said = piped(Cursor::new(lines.as_bytes().to_vec()), script);
    assert_eq!(
        said.out,
        "You said: hello\n\
         It holds from the next answer on, in this conversation.\n\
         parrot alone:\n[be brief] parrot\n\nwith lora_1:\n[be brief] parrot, taught\n\
         Marked good (weight 1, #1)\n\
         Training buffer: 1 example (1.0 weighted) · 1 of 10 for a training\n"
    );
    let alone = session("/compare who?\nwho?\n");
    assert!(alone.errors.starts_with("error: no adapter is live"), "{}", alone.errors);
    assert_eq!(alone.out, "parrot\n");
}

#[test]
fn the_user_hears_once_that_the_context_slides() {
    let said = session("one\noverflow\noverflow\n/clear\noverflow\n");
    let told = "[the context is full: the model no longer sees the oldest turn";
    assert_eq!(said.out.matches(told).count(), 2, "once a conversation: {}", said.out);
}

#[test]
fn a_revision_is_offered_and_accepted_in_a_script() {
    let said = session("name?\n/critical say Ada\n\n/accept\nname again?\n/pending\n/accept\n");
    let tail = said.out.split_once("waiting for a correction\n").expect("marked first").1;
    assert_eq!(
        tail,
        "Answering again with the note in mind, 4 times (going on stops it):\n\
         Again: say Ada\n\
         [the best of 4: the note makes it 0.90 nats per token likelier]\n\
         /accept takes this as the answer to learn, /fix TEXT gives another, /skip leaves the mark waiting.\n\
         Accepted: the critical mark learns this answer (weight 10, #1)\n\
         Training buffer: 1 example (10.0 weighted) · 1 of 10 for a training\n\
         You said: name again?\n\
         No mark waits for a better answer.\n",
        "an empty line of a script says nothing"
    );
    assert!(said.errors.starts_with("error: no revision is on offer"), "{}", said.errors);
}

#[test]
fn the_best_revision_is_shown_whole_when_it_is_not_the_first() {
    let said = session("name?\n/medium second\n/accept\n");
    let better =
        "Again: second\nBetter, of 4:\nThe third try,\nin two lines.\n[the note makes it 0.80";
    assert!(said.out.contains(better), "{}", said.out);
    assert!(said.out.contains("Accepted: the medium mark learns this answer (weight 3, #1)"));
}

#[test]
fn a_revision_that_is_left_can_be_taken_later_by_its_id() {
    let said = session(
        "a\n/medium one\n/skip\nb\n/medium two\nc\n/pending\n/accept 1\n/fix #2 by hand\n/pending\n/undo\n/accept 9\n",
    );
    assert!(
        said.out.contains("Mark 1 waits for a correction: /accept 1 still takes the revision.\n")
    );
    let pending = "#2 medium · a question\n   note: two\n   a revision is there: /accept 2\n\
                   #1 medium · a question\n   note: one\n   a revision is there: /accept 1\n\
                   /fix #ID TEXT gives the better answer, /forget ID drops the mark.\n\
                   Accepted: the medium mark learns this answer (weight 3, #1)\n";
    assert!(said.out.contains(pending), "{}", said.out);
    assert!(said.out.contains("Corrected the medium mark (weight 3, #2): two\n"), "{}", said.out);
    assert!(said.out.contains("No mark waits for a better answer.\n"));
    assert!(said.out.contains("The last change of mark 2 is taken back: medium again, waiting"));
    assert!(said.errors.contains("there is no revision of mark 9 in this session"));
}

#[test]
fn unattended_a_revision_is_taken_only_if_the_note_helps_and_the_user_is_told() {
    let said = session("/set revisions auto\na\n/critical say Ada\nb\n/medium hardly\n/pending\n");
    assert!(said.out.contains("likelier]\nAccepted: the critical mark learns"), "{}", said.out);
    let told = "No revision: the note hardly changes what it says (0.01 nats per token, 0.5 are asked for).\n\
                Mark 2 waits for a correction";
    assert!(said.out.contains(told), "{}", said.out);
    assert!(said.out.contains("\n#2 medium · a question\n") && !said.out.contains("\n#1 "));
    assert_eq!((said.errors.as_str(), said.code), ("", 0));
}

#[test]
fn without_revisions_or_without_a_note_a_mark_just_waits() {
    for lines in ["/set revisions off\na\n/critical say Ada\n", "a\n/critical\n"] {
        let said = session(lines);
        assert!(!said.out.contains("Answering again"), "{}", said.out);
        assert!(said.out.contains("Waiting for a correction"));
    }
}

#[test]
fn a_revision_that_fails_leaves_the_mark_and_is_no_failure_of_the_script() {
    let said = session("a\n/critical broken\n");
    assert!(
        said.out.contains("No revision: the question is too long.\nMark 1 waits"),
        "{}",
        said.out
    );
    assert_eq!(said.code, 0);
}

#[test]
fn undo_takes_an_accepted_revision_back_before_the_mark() {
    let said = session("a\n/critical say Ada\n/accept\n/undo\n/undo\n/undo\n");
    let first = said.out.find("The last change of mark 1 is taken back: critical again, waiting");
    let second = said.out.find("Mark 1 is taken back.\n");
    assert!(first.is_some() && first < second, "{}", said.out);
    assert!(said.errors.contains("there is no mark of this session to take back"));
}

#[test]
fn enter_on_an_empty_line_accepts_what_is_offered_and_nothing_else() {
    let mut person = Person::sits(Script::default());
    person.types("name?");
    person.reads("name?");
    person.types("/critical say Ada");
    person.reads("Enter or /accept takes this");
    person.types("");
    person.reads("Accepted: the critical mark");
    person.types("");
    person.types("and?");
    person.reads("and?");
    let seen = person.leaves();
    assert_eq!(seen.matches("Accepted").count(), 1, "{seen}");
}

#[test]
fn whatever_comes_next_stops_a_revision_and_is_dealt_with() {
    let stopped = "[stopped; mark 1 waits";
    for (line, first, then) in [
        ("next", stopped, "next"),
        ("/good", stopped, "Marked good"),
        ("/fix better", stopped, "Corrected the critical mark"),
        ("/undo", stopped, "Mark 1 is taken back"),
        ("/clear", "A new conversation", stopped),
    ] {
        let mut person = Person::sits(Script::default());
        person.types("name?");
        person.reads("You ");
        person.reads("name?");
        person.types("/critical for ever");
        person.reads("Answering again");
        person.types("/jobs");
        person.reads("No jobs yet");
        person.types(line);
        person.reads(first);
        person.reads(then);
        let seen = person.leaves();
        assert!(!seen.contains("takes this as the answer"), "{line}: {seen}");
    }
}

#[test]
fn ctrl_c_and_skip_end_a_revision_and_the_mark_stays() {
    for interrupt in [true, false] {
        let mut person =
            Person::sits(Script { pause: Duration::from_millis(1), ..Script::default() });
        person.types("name?");
        person.reads("name?");
        person.types("/critical for ever");
        person.reads("Answering again");
        if interrupt {
            person.interrupts()
        } else {
            person.types("/skip")
        }
        person.reads("[stopped; mark 1 waits for a correction: /pending]");
        person.types("/pending");
        person.reads("#1 critical");
        let seen = person.leaves();
        assert!(!seen.contains("error: "), "{seen}");
    }
}

#[test]
fn a_mark_with_a_question_typed_behind_it_is_not_revised_at_all() {
    let mut person = Person::sits(Script { pause: Duration::from_millis(5), ..Script::default() });
    person.types("long");
    person.types("/critical for ever");
    person.types("next");
    person.reads("Marked critical");
    person.reads("next");
    let seen = person.leaves();
    assert!(!seen.contains("Answering again"), "{seen}");
}
