use super::*;

fn id(text: &str) -> AdapterId {
    text.parse().expect("a valid id")
}

fn full_buffer() -> Buffer {
    Buffer {
        domain: "general".into(),
        examples: 8,
        weighted: 42.0,
        trainable: 6,
        waiting_for_correction: 2,
        heldout: 0,
        threshold: Some(10),
    }
}

fn mark(kind: Mark, weight: f64, note: Option<&str>, has_target: bool) -> Marked {
    Marked {
        id: 1,
        mark: kind,
        weight,
        note: note.map(str::to_owned),
        has_target,
        redacted: Vec::new(),
        heldout: false,
        before: None,
        buffer: full_buffer(),
    }
}

#[test]
fn what_was_replaced_in_a_mark_and_what_knows_a_forgotten_one_is_said() {
    let found = |field: &str| SecretFound { field: field.to_owned(), rule: "jwt" };
    let redacted = vec![found("note"), found("message 1")];
    let text = marked(&Marked { redacted, ..mark(Mark::Good, 1.0, None, true) });
    assert!(
        text.contains("\nReplaced before it was stored: jwt in note, jwt in message 1.\n"),
        "{text}"
    );
    let done = Forgotten {
        domain: "general".into(),
        seen_by: vec!["lora_a".parse().unwrap()],
        in_running_job: Some(4),
        cancelled_jobs: vec![5],
        still_in_log: true,
    };
    let text = forgotten(7, &done, false);
    for words in ["Mark 7 is forgotten", "Adapter lora_a", "Job 4", "Job 5", "its log still"] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(forgotten(7, &Forgotten::default(), false).lines().count(), 1);
    let nobody = forgotten(7, &Forgotten::default(), true);
    assert!(nobody.contains("nothing to train anew"), "{nobody}");
    assert!(forgotten(7, &done, true).contains("when the new one is live"));
}

#[test]
fn a_mark_is_acknowledged_with_weight_note_and_buffer() {
    assert_eq!(
        marked(&mark(Mark::Critical, 10.0, Some("wrong name"), false)),
        "Marked critical (weight 10, #1): wrong name\n\
         Waiting for a correction: /fix TEXT gives it.\n\
         Training buffer: 8 examples (42.0 weighted) · 6 of 10 for a training · \
         2 waiting for a correction"
    );
    assert!(marked(&mark(Mark::Good, 1.0, None, true)).starts_with("Marked good (weight 1, #1)\n"));
    let bare = marked(&mark(Mark::Medium, 3.0, None, false));
    assert!(bare.starts_with("Marked medium (weight 3, #1), without a note\nWaiting"), "{bare}");
}

#[test]
fn a_fix_says_whose_weight_it_has() {
    let upgraded = fixed(&mark(Mark::Critical, 10.0, Some("no"), true));
    assert!(
        upgraded.starts_with("Corrected the critical mark (weight 10, #1): no\n"),
        "{upgraded}"
    );
    let alone = fixed(&mark(Mark::Fix, 3.0, None, true));
    assert!(alone.starts_with("Corrected (weight 3, #1)\nTraining buffer: 8 examples"), "{alone}");
}

#[test]
fn an_undone_step_says_what_the_mark_is_again() {
    let was = |mark, fix: Option<&str>, revised| MarkState {
        mark,
        weight: 3.0,
        note: None,
        fix: fix.map(str::to_owned),
        revised,
    };
    assert!(undone(7, None, &full_buffer()).starts_with("Mark 7 is taken back.\nTraining"));
    for (to, words) in [
        (was(Mark::Medium, None, false), "medium again, waiting for a correction."),
        (was(Mark::Fix, Some("x"), false), "fix again, with its fix."),
        (was(Mark::Critical, Some("x"), true), "critical again, with its revision."),
        (was(Mark::Good, None, false), "good again, without a fix."),
    ] {
        let text = undone(7, Some(&to), &full_buffer());
        assert!(text.starts_with("The last change of mark 7 is taken back: "), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_held_out_mark_says_so() {
    let held = Marked { heldout: true, ..mark(Mark::Good, 1.0, None, true) };
    assert!(marked(&held).contains("\nHeld out: "));
}

#[test]
fn the_buffer_counts_one_example_and_names_the_way_without_a_threshold() {
    let one = Buffer { examples: 1, weighted: 3.0, ..Buffer::default() };
    assert_eq!(
        buffer(&one),
        "Training buffer: 1 example (3.0 weighted) · /train starts a training"
    );
    let reached = Buffer { trainable: 10, waiting_for_correction: 0, ..full_buffer() };
    assert_eq!(buffer(&reached), "Training buffer: 8 examples (42.0 weighted)");
}

#[test]
fn notes_cannot_steer_the_terminal_or_fill_it() {
    let note = format!("\u{1b}[2Jred\n{}", "x".repeat(5000));
    let text = marked(&mark(Mark::Good, 1.0, Some(&note), true));
    assert!(!text.contains('\u{1b}'));
    assert!(text.lines().next().is_some_and(|line| line.chars().count() < 300));
}

#[test]
fn the_end_of_a_job_says_examples_loss_heldout_result_and_path() {
    let done = JobNotice::Succeeded {
        job: 3,
        adapter: id("lora_1"),
        path: "/home/me/.shammah/adapters/lora_1".into(),
        examples: 10,
        final_loss: 0.43219,
        report: "5 better, 1 worse (held-out loss 1.92 → 1.41)\nKL 0.02\n".into(),
        live: true,
    };
    assert_eq!(
        job_notice(&done).as_deref(),
        Some(
            "Job 3 finished: 10 examples, final loss 0.4322\n\
             5 better, 1 worse (held-out loss 1.92 → 1.41)\nKL 0.02\n\
             Adapter lora_1 is live: /home/me/.shammah/adapters/lora_1"
        )
    );
}

#[test]
fn a_rejected_job_says_why_and_that_nothing_changed() {
    let rejected = JobNotice::Rejected {
        job: 3,
        reasons: vec!["KL 1.2 above 0.5".into(), "held-out\u{7} worse".into()],
        examples: 10,
        final_loss: 0.5,
        report: "1 better, 5 worse".into(),
    };
    assert_eq!(
        job_notice(&rejected).as_deref(),
        Some(
            "Job 3 rejected: 10 examples, final loss 0.5000. Nothing changed; the examples stay.\n\
             1 better, 5 worse\n- KL 1.2 above 0.5\n- held-out worse"
        )
    );
}

#[test]
fn other_notices_are_one_line_and_progress_none() {
    let one_line = [
        JobNotice::Queued { job: 1, domain: "general".into(), examples: 1, automatic: true },
        JobNotice::Started { job: 1, examples: 8, attempt: 1 },
        JobNotice::Started { job: 1, examples: 8, attempt: 2 },
        JobNotice::Expected { job: 1, ms: 40_400, bytes: 1_400_000_000 },
        JobNotice::Noted { job: 1, text: "two\nlines".into() },
        JobNotice::Retrying {
            job: 1,
            reason: "killed by signal 9".into(),
            attempt: 2,
            max_attempts: 3,
            pause_ms: 1000,
        },
        JobNotice::Failed { job: 1, error: "no space.".into(), attempts: 1 },
        JobNotice::Cancelled { job: 1 },
        JobNotice::Parked { job: 1, step: 40 },
    ];
    for notice in &one_line {
        let text = job_notice(notice).unwrap_or_else(|| panic!("{notice:?} is said"));
        assert!(text.starts_with("Job 1") && !text.contains('\n'), "{text}");
        assert!(!text.contains(".."), "{text}");
    }
    assert_eq!(job_notice(&JobNotice::Evaluating { job: 1 }), None);
    assert_eq!(job_notice(&JobNotice::Checkpointed { job: 1, step: 5 }), None);
}

#[test]
fn spans_of_time_and_sizes_have_one_unit() {
    for (ms, text) in [
        (0, "0 s"),
        (400, "400 ms"),
        (1_600, "2 s"),
        (119_000, "119 s"),
        (150_000, "3 min"),
        (9_000_000, "3 h"),
    ] {
        assert_eq!(duration(ms), text);
    }
    assert_eq!((size(12), size(1_234_567)), ("12 bytes".into(), "1.2 MB".into()));
    assert_eq!((count(3_400_000), count(494_032_768)), ("3.4 M".into(), "494 M".into()));
}

fn answer(finish_reason: FinishReason, new_tokens: usize) -> Answer {
    Answer {
        text: "x".into(),
        adapters: vec![(id("lora_1"), 1.0)],
        prompt_tokens: 20,
        cached_tokens: 0,
        new_tokens,
        prefill_ms: 5,
        decode_ms: 500,
        finish_reason,
        dropped_turns: 0,
        base: String::new(),
        route: crate::domain::Route::default(),
    }
}

#[test]
fn an_answer_that_was_cut_says_why() {
    assert_eq!(answer_tail(&answer(FinishReason::Stop, 10), 256, false), None);
    let tail = |reason, tokens| answer_tail(&answer(reason, tokens), 256, false).expect("said");
    assert_eq!(tail(FinishReason::Cancelled, 3), "[stopped]");
    assert!(tail(FinishReason::Length, 256).contains("/set max_tokens"));
    assert!(tail(FinishReason::Length, 100).contains("context is full"));
    assert_eq!(
        answer_tail(&answer(FinishReason::Stop, 10), 256, true).as_deref(),
        Some("[10 tokens after 20 tokens · 20.0 tokens/s · lora_1]")
    );
}

#[test]
fn the_banner_names_model_device_adapter_and_help() {
    let mut banner = Banner {
        model: "builtin\u{1b}".into(),
        parameters: 3_400_000,
        device: "cpu".into(),
        adapters: vec![],
        notes: vec![],
    };
    let text = banner.text();
    assert!(text.contains("builtin (3.4 M parameters) on cpu\nNo adapter"), "{text}");
    assert!(text.ends_with("/help lists the commands."));
    banner.adapters = vec![id("lora_1")];
    banner.notes = vec!["another process runs the queue".into()];
    assert!(banner.text().contains("Adapter lora_1 is live. /help"));
    assert!(banner.text().ends_with("\nanother process runs the queue"));
}
