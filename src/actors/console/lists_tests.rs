use super::*;

fn job_line() -> JobLine {
    JobLine {
        id: 3,
        name: "lora_1".into(),
        domain: "general".into(),
        state: "running".into(),
        attempts: 1,
        examples: 1,
        step: 5,
        total_steps: 30,
        loss: Some(1.23456),
        heldout_before: None,
        heldout_after: None,
        adapter: None,
        error: None,
        created_at: "2026-11-22T10:00:00Z".into(),
        finished_at: None,
    }
}

fn adapter_line() -> AdapterLine {
    AdapterLine {
        id: "lora_1".parse().expect("an id"),
        domain: "general".into(),
        parent: None,
        state: "ready".into(),
        live: true,
        fits: true,
        base: "ab".into(),
        rank: 16,
        examples: 10,
        used_in: 4,
        path: "/x".into(),
        created_at: "2026-11-22T10:00:00Z".into(),
        bytes: 10,
    }
}

#[test]
fn jobs_say_what_is_known_and_nothing_else() {
    assert!(jobs(&[]).starts_with("No jobs yet"));
    assert_eq!(jobs(&[job_line()]), "#3 running · general · 1 example · step 5/30 · loss 1.2346");
    let over = JobLine {
        state: "rejected".into(),
        heldout_before: Some(1.92),
        heldout_after: Some(2.5),
        error: Some("held-out got\nworse".into()),
        total_steps: 0,
        loss: None,
        ..job_line()
    };
    assert_eq!(
        jobs(&[over]),
        "#3 rejected · general · 1 example · held-out 1.92 → 2.50\n   held-out got worse"
    );
}

#[test]
fn live_adapters_have_a_star_and_strangers_are_named() {
    assert!(adapters(&[]).starts_with("No adapters yet"));
    assert_eq!(
        adapters(&[adapter_line()]),
        "* lora_1 · general · rank 16 · 10 examples · 4 answers"
    );
    let stranger = AdapterLine {
        live: false,
        fits: false,
        state: "quarantined".into(),
        parent: Some("lora_0".parse().expect("an id")),
        ..adapter_line()
    };
    let text = adapters(&[stranger]);
    assert!(text.contains("quarantined · of another model") && text.contains("from lora_0"));
    assert!(text.ends_with("None is live: the model answers as it came."), "{text}");
}

#[test]
fn help_names_every_command() {
    let text = help();
    for help in COMMANDS {
        assert!(text.contains(help.usage), "{}", help.usage);
        assert!(help_of(help).contains(help.detail));
    }
}

#[test]
fn waiting_marks_are_listed_with_note_question_and_revision() {
    let one = |id, note: Option<&str>| WaitingMark {
        id,
        mark: crate::domain::Mark::Critical,
        question: "who?\u{1b}[2J".into(),
        note: note.map(str::to_owned),
    };
    let marks = vec![one(9, Some("wrong name")), one(7, None)];
    let text = pending(&Waiting { marks, total: 5 }, |id| id == 9);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("#9 critical · who?") && !lines[0].contains('\u{1b}'), "{text}");
    assert_eq!(lines[1], "   note: wrong name");
    assert_eq!(lines[2], "   a revision is there: /accept 9");
    assert!(lines[3].starts_with("#7 critical") && lines[4].starts_with("5 in all"), "{text}");
    assert!(lines[5].starts_with("/fix #ID TEXT"));
    assert_eq!(pending(&Waiting::default(), |_| false), "No mark waits for a better answer.");
}
