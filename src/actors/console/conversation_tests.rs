use super::*;
use crate::messages::feedback::Buffer;

fn answer(text: &str, finish_reason: FinishReason) -> Answer {
    Answer {
        text: text.into(),
        adapters: Vec::new(),
        prompt_tokens: 1,
        cached_tokens: 0,
        new_tokens: 1,
        prefill_ms: 1,
        decode_ms: 1,
        finish_reason,
        dropped_turns: 0,
        base: "b1".into(),
        route: crate::domain::Route::default(),
    }
}

fn talked() -> Conversation {
    let mut conversation = Conversation::new("");
    conversation.ask("hello".into(), usize::MAX);
    conversation.answered(&answer("hi", FinishReason::Stop));
    conversation
}

fn stored(id: i64) -> Marked {
    Marked {
        id,
        mark: Mark::Critical,
        weight: 10.0,
        note: None,
        has_target: false,
        redacted: Vec::new(),
        heldout: false,
        before: None,
        buffer: Buffer::default(),
    }
}

#[test]
fn a_mark_needs_an_answer() {
    let mut conversation = Conversation::new("be kind");
    assert!(conversation.mark(Mark::Good, None).is_err());
    assert!(conversation.fix("x".into()).is_err());
    assert!(conversation.undo().is_err());
    conversation.ask("hello".into(), usize::MAX);
    assert!(conversation.mark(Mark::Good, None).is_err(), "the answer is not there yet");
}

#[test]
fn a_mark_is_about_the_last_answer_and_what_led_to_it() {
    let mut conversation = talked();
    conversation.ask("and now?".into(), usize::MAX);
    conversation.answered(&answer("later", FinishReason::Stop));
    let message = conversation.mark(Mark::Good, Some("yes".into())).expect("an answer");
    let said: Vec<&str> = message.turn.messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["hello", "hi", "and now?"]);
    assert_eq!(message.turn.response, "later");
    assert_eq!((message.note.as_deref(), message.replaces), (Some("yes"), None));
}

#[test]
fn a_second_mark_replaces_and_a_fix_upgrades_the_mark_of_the_turn() {
    let mut conversation = talked();
    conversation.marked(&stored(7));
    assert_eq!(conversation.mark(Mark::Medium, None).expect("an answer").replaces, Some(7));
    assert_eq!(conversation.fix("better".into()).expect("an answer").mark, Some(7));
    conversation.ask("next".into(), usize::MAX);
    conversation.answered(&answer("new", FinishReason::Stop));
    assert_eq!(conversation.fix("better".into()).expect("an answer").mark, None);
}

#[test]
fn undo_takes_the_marks_back_one_after_the_other() {
    let mut conversation = talked();
    conversation.marked(&stored(7));
    conversation.marked(&stored(8));
    conversation.clear("");
    assert_eq!(conversation.undo().expect("a mark").id, 8, "a new conversation keeps them");
    conversation.undone(8, None);
    assert_eq!(conversation.undo().expect("a mark").id, 7);
    conversation.undone(7, None);
    assert!(conversation.undo().is_err());
}

fn was(fix: Option<&str>) -> MarkState {
    MarkState {
        mark: Mark::Fix,
        weight: 3.0,
        note: None,
        fix: fix.map(str::to_owned),
        revised: false,
    }
}

#[test]
fn undo_takes_the_last_step_back_and_the_mark_with_the_first() {
    let mut conversation = talked();
    conversation.marked(&stored(7));
    conversation.marked(&Marked { before: Some(was(Some("better"))), ..stored(7) });
    let undo = conversation.undo().expect("a step");
    assert_eq!((undo.id, undo.to.clone()), (7, Some(was(Some("better")))));
    conversation.undone(7, undo.to.as_ref());
    assert_eq!(conversation.mark(Mark::Good, None).expect("an answer").replaces, Some(7));
    let undo = conversation.undo().expect("a step");
    assert_eq!((undo.id, undo.to), (7, None));
    conversation.undone(7, None);
    assert_eq!(conversation.mark(Mark::Good, None).expect("an answer").replaces, None);
}

#[test]
fn the_conversation_goes_on_with_the_better_answer_until_it_is_taken_back() {
    let mut conversation = talked();
    conversation.marked(&stored(7));
    conversation.corrected(6, "of another answer");
    conversation.corrected(7, "hello to you");
    assert_eq!(conversation.mark(Mark::Good, None).expect("an answer").turn.response, "hi");
    let said = |conversation: &mut Conversation| {
        let messages = conversation.ask("next".into(), usize::MAX);
        conversation.unanswered();
        messages[1].content.clone()
    };
    assert_eq!(said(&mut conversation), "hello to you");
    conversation.undone(7, Some(&was(None)));
    assert_eq!(said(&mut conversation), "hi");
    conversation.corrected(7, "hello to you");
    conversation.forgotten(7);
    assert_eq!(said(&mut conversation), "hi");
}

#[test]
fn after_undo_the_next_mark_of_the_turn_is_a_new_one() {
    let mut conversation = talked();
    conversation.marked(&stored(7));
    conversation.undone(7, None);
    assert_eq!(conversation.mark(Mark::Good, None).expect("an answer").replaces, None);
}

#[test]
fn a_cut_answer_is_no_example_as_it_stands() {
    for reason in [FinishReason::Length, FinishReason::Cancelled] {
        let mut conversation = Conversation::new("");
        conversation.ask("hello".into(), usize::MAX);
        conversation.answered(&answer("hi and", reason));
        assert!(conversation.mark(Mark::Good, None).is_err());
        assert!(conversation.mark(Mark::Critical, None).is_ok());
        assert!(conversation.fix("hi and bye".into()).is_ok());
    }
}

#[test]
fn an_answer_without_text_leaves_no_trace() {
    let mut conversation = talked();
    conversation.ask("next".into(), usize::MAX);
    conversation.answered(&answer("", FinishReason::Cancelled));
    let messages = conversation.ask("again".into(), usize::MAX);
    let said: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["hello", "hi", "again"]);
}

#[test]
fn a_new_conversation_begins_with_the_system_message_only() {
    let mut conversation = talked();
    conversation.clear("be kind");
    let messages = conversation.ask("hello".into(), usize::MAX);
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0].role, Role::System);
    assert!(conversation.mark(Mark::Good, None).is_err());
}

#[test]
fn only_the_last_turns_are_sent_and_the_system_message_stays() {
    let mut conversation = Conversation::new("be kind");
    for question in ["one", "two", "three"] {
        conversation.ask(question.into(), 1);
        conversation.answered(&answer("yes", FinishReason::Stop));
    }
    let messages = conversation.ask("four".into(), 1);
    let said: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["be kind", "three", "yes", "four"]);
    let mut conversation = talked();
    assert_eq!(conversation.ask("alone".into(), 0).len(), 1);
}

#[test]
fn what_the_model_did_not_see_is_forgotten_and_no_part_of_a_mark() {
    let mut conversation = Conversation::new("be kind");
    for question in ["one", "two"] {
        conversation.ask(question.into(), usize::MAX);
        conversation.answered(&answer("yes", FinishReason::Stop));
    }
    conversation.ask("three".into(), usize::MAX);
    conversation.answered(&Answer { dropped_turns: 1, ..answer("no", FinishReason::Stop) });
    let turn = conversation.mark(Mark::Good, None).expect("an answer").turn;
    let said: Vec<&str> = turn.messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["be kind", "two", "yes", "three"]);
    assert_eq!(turn.base.as_deref(), Some("b1"), "it belongs to the model that answered");
    let next = conversation.ask("four".into(), usize::MAX);
    assert_eq!(next.iter().filter(|m| m.role == Role::User).count(), 3);
}

#[test]
fn the_system_message_can_be_set_changed_and_taken_away() {
    let mut conversation = talked();
    assert_eq!(conversation.system(), None);
    for text in ["be brief", "be kind"] {
        conversation.set_system(text);
        assert_eq!(conversation.system(), Some(text));
    }
    let messages = conversation.ask("next".into(), usize::MAX);
    let said: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["be kind", "hello", "hi", "next"]);
    conversation.unanswered();
    conversation.set_system("");
    assert_eq!(conversation.system(), None);
    assert_eq!(conversation.ask("next".into(), usize::MAX).len(), 3);
}

#[test]
fn a_question_aside_has_the_system_message_and_leaves_no_trace() {
    let mut conversation = talked();
    conversation.set_system("be kind");
    let aside = conversation.aside("who?".into());
    let said: Vec<&str> = aside.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["be kind", "who?"]);
    assert_eq!(conversation.ask("next".into(), usize::MAX).len(), 4);
}
