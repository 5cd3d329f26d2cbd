//! Chats in the forms of others: OpenAI's fine-tuning files and ShareGPT.
//!
//! A chat becomes one mark: its last answer, behind everything that was said before it.

use serde_json::{Map, Value, json};

use crate::domain::{Mark, Message, Role};
use crate::store::FeedbackRow;

/// How a file of marks is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// This program's own: everything that is known of a mark
    Shammah,
    /// `{"messages": [{"role": …, "content": …}]}`, the answer last
    Openai,
    /// `{"conversations": [{"from": "human", "value": …}]}`, the answer last
    Sharegpt,
}

/// A chat that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// In which form it was.
    pub form: Form,
    /// All but the last answer.
    pub messages: Vec<Message>,
    /// The last answer.
    pub response: String,
    /// Its weight, if one is given.
    pub weight: Option<f64>,
}

/// Reads a chat of others; `None` for a line of our own form.
///
/// # Errors
/// What is wrong with a chat, and what would be right.
pub fn read(line: &Value) -> Option<Result<Chat, String>> {
    let object = line.as_object()?;
    if let Some(turns) = object.get("conversations") {
        return Some(chat(Form::Sharegpt, object, turns));
    }
    let ours = object.contains_key("response") || object.contains_key("mark");
    let turns = object.get("messages").filter(|_| !ours)?;
    // A conversation that ends with the user is one of ours that lacks its answer.
    let last = turns.as_array()?.last()?.get("role")?;
    (last != "user").then(|| chat(Form::Openai, object, turns))
}

fn chat(form: Form, object: &Map<String, Value>, turns: &Value) -> Result<Chat, String> {
    let list = if form == Form::Openai { "messages" } else { "conversations" };
    let known = [list, "weight", "id", "system"];
    if let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("{key:?} is not known in a chat: leave it out"));
    }
    let turns = turns.as_array().ok_or_else(|| format!("{list} must be a list"))?;
    let mut messages =
        turns.iter().map(|turn| message(form, turn)).collect::<Result<Vec<_>, _>>()?;
    if let Some(system) = object.get("system").and_then(Value::as_str).filter(|s| !s.is_empty()) {
        messages.insert(0, Message::system(system));
    }
    let answer = messages.pop().filter(|last| last.role == Role::Assistant);
    let answer = answer.ok_or("the chat must end with an answer: that is what is learned")?;
    if answer.content.trim().is_empty() {
        return Err("the last answer is empty".to_owned());
    }
    check_order(&messages)?;
    if messages.last().is_none_or(|last| last.role != Role::User) {
        return Err("the last answer must follow a question of the user".to_owned());
    }
    let of_turn = turns.last().and_then(|turn| turn.get("weight"));
    Ok(Chat {
        form,
        messages,
        response: answer.content,
        weight: weight(object.get("weight").or(of_turn))?,
    })
}

/// Refuses what many chat templates refuse: a system message that is not the first, or turns that do not alternate.
fn check_order(messages: &[Message]) -> Result<(), String> {
    let has_system = messages.first().is_some_and(|first| first.role == Role::System);
    let turns = &messages[usize::from(has_system)..];
    if turns.iter().any(|turn| turn.role == Role::System) {
        return Err("a chat has at most one system message, which comes first".to_owned());
    }
    let expected = [Role::User, Role::Assistant].into_iter().cycle();
    if turns.iter().zip(expected).any(|(turn, expected)| turn.role != expected) {
        return Err("user and assistant must take turns, the user first".to_owned());
    }
    Ok(())
}

fn weight(given: Option<&Value>) -> Result<Option<f64>, String> {
    match given {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|weight| *weight > 0.0) {
            Some(weight) => Ok(Some(weight)),
            // OpenAI's way to say that an answer is not to be learned.
            None => Err(format!("weight is {value}: it must be a number above 0")),
        },
    }
}

fn message(form: Form, turn: &Value) -> Result<Message, String> {
    let (who, what) = if form == Form::Openai { ("role", "content") } else { ("from", "value") };
    let name = turn.get(who).and_then(Value::as_str).unwrap_or_default();
    let role = match name {
        "system" | "developer" => Role::System,
        "user" | "human" => Role::User,
        "assistant" | "gpt" | "chatgpt" | "model" | "bot" => Role::Assistant,
        other => {
            return Err(format!("{who} is {other:?}: only system, user and assistant are learned"));
        }
    };
    if let Some(key) = ["tool_calls", "function_call"].iter().find(|key| turn.get(**key).is_some())
    {
        return Err(format!("a message has {key:?}: calls of tools cannot be learned"));
    }
    let content = turn.get(what).and_then(text);
    let content = content.ok_or_else(|| format!("a message has no text in {what:?}"))?;
    Ok(Message { role, content })
}

/// A text, or OpenAI's list of parts that are texts.
fn text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let part = |part: &Value| match part.get("type").and_then(Value::as_str) {
                Some("text") => part.get("text").and_then(Value::as_str).map(str::to_owned),
                _ => None,
            };
            parts.iter().map(part).collect()
        }
        _ => None,
    }
}

/// Makes a chat of a mark with a target: the conversation and the answer to learn.
pub fn write(form: Form, row: &FeedbackRow) -> Option<Value> {
    let answer = Message::assistant(row.target()?);
    let all = row.messages.iter().chain([&answer]);
    Some(match form {
        Form::Sharegpt => {
            let turn = |message: &Message| {
                let from = match message.role {
                    Role::System => "system",
                    Role::User => "human",
                    Role::Assistant => "gpt",
                };
                json!({"from": from, "value": message.content})
            };
            json!({"conversations": all.map(turn).collect::<Vec<_>>()})
        }
        Form::Openai | Form::Shammah => json!({"messages": all.collect::<Vec<_>>()}),
    })
}

/// Checks what a chat without a mark may be stored as.
///
/// # Errors
/// `fix`, which needs another answer.
pub fn default_mark(text: &str) -> Result<Mark, String> {
    match text.parse()? {
        Mark::Fix => {
            Err("a chat has one answer, and a fix needs a second: use good, medium or critical"
                .to_owned())
        }
        mark => Ok(mark),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Result<Chat, String>> {
        read(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn both_forms_give_the_last_answer_behind_what_was_said() {
        let openai = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"user","content":[{"type":"text","text":"q2"}]},{"role":"assistant","content":"a2","weight":1}]}"#;
        let chat = of(openai).unwrap().unwrap();
        assert_eq!(
            (chat.form, chat.response.as_str(), chat.weight),
            (Form::Openai, "a2", Some(1.0))
        );
        assert_eq!(chat.messages.len(), 4);
        assert_eq!(chat.messages[3], Message::user("q2"));
        let sharegpt = r#"{"id":"x","system":"s","weight":2.5,"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#;
        let chat = of(sharegpt).unwrap().unwrap();
        assert_eq!((chat.form, chat.weight), (Form::Sharegpt, Some(2.5)));
        assert_eq!(chat.messages, [Message::system("s"), Message::user("q")]);
    }

    #[test]
    fn our_own_lines_are_left_alone() {
        for text in [
            r#"{"messages":[{"role":"user","content":"q"}],"response":"a","mark":"good"}"#,
            r#"{"messages":[{"role":"user","content":"q"}]}"#,
            "[]",
            r#"{"messages":[]}"#,
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_learned_is_refused_with_its_reason() {
        for (text, part) in [
            (r#"{"conversations":[{"from":"human","value":"q"}]}"#, "must end with an answer"),
            (r#"{"conversations":[{"from":"gpt","value":"a"}]}"#, "must follow a question"),
            (r#"{"conversations":[{"from":"tool","value":"a"}]}"#, "from is \"tool\""),
            (
                r#"{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":" "}]}"#,
                "is empty",
            ),
            (r#"{"conversations":3}"#, "must be a list"),
            (r#"{"conversations":[],"colour":1}"#, "\"colour\""),
            (
                r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":0}]}"#,
                "above 0",
            ),
            (
                r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[]}]}"#,
                "tool_calls",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]},{"role":"assistant","content":"a"}]}"#,
                "no text",
            ),
            (
                r#"{"system":"s","conversations":[{"from":"system","value":"t"},{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#,
                "at most one system message",
            ),
            (
                r#"{"conversations":[{"from":"human","value":"q"},{"from":"system","value":"s"},{"from":"gpt","value":"a"}]}"#,
                "which comes first",
            ),
            (
                r#"{"conversations":[{"from":"human","value":"q"},{"from":"human","value":"r"},{"from":"gpt","value":"a"}]}"#,
                "must take turns",
            ),
            (
                r#"{"conversations":[{"from":"gpt","value":"hello"},{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#,
                "the user first",
            ),
            (
                r#"{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"},{"from":"gpt","value":"b"}]}"#,
                "must follow a question",
            ),
        ] {
            let problem = of(text).unwrap().unwrap_err();
            assert!(problem.contains(part), "{problem} should contain {part}");
        }
    }
}
