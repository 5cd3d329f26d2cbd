//! Chat templates: the Jinja text of `tokenizer_config.json`, rendered by minijinja.

use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::ModelError;
use crate::domain::Message;

/// The name under which the one template is registered.
const NAME: &str = "chat";
/// Instructions that one rendering may take: a template of the size of Qwen3's needs some hundred per message, so this is
/// far above the longest conversation, and an endless loop ends within seconds.
const MAX_INSTRUCTIONS: u64 = 10_000_000;

/// The text that turns messages into a prompt.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template's text.
    ///
    /// # Errors
    /// The line of a syntax error.
    pub fn new(
        text: &str,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        // As transformers sets up Jinja.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, text.to_owned()).map_err(template_error)?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// What the template refuses, in its own words.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ModelError> {
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        template
            .render(context! {
                messages,
                add_generation_prompt,
                // What transformers passes when there are none.
                tools => Value::from(()),
                documents => Value::from(()),
                // Qwen3 thinks aloud otherwise: its thoughts would be shown, marked and learned as
                // part of the answer.
                enable_thinking => false,
                bos_token => self.bos_token,
                eos_token => self.eos_token,
            })
            .map_err(template_error)
    }
}

fn template_error(error: Error) -> ModelError {
    ModelError::Tokenizer(format!(
        "chat template: {error}; check the model's tokenizer_config.json"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_loops_for_ever_is_an_error() {
        let range = "{% for i in range(100000) %}";
        let end = "{% endfor %}";
        let text = format!("{range}{range}{range}{end}{end}{end}");
        let template = ChatTemplate::new(&text, None, None).unwrap();
        let error = template.render(&[Message::user("hello")], true).unwrap_err().to_string();
        assert!(error.contains("out of fuel") && error.contains("tokenizer_config"), "{error}");
    }

    #[test]
    fn a_long_conversation_does_not_exhaust_the_limit() {
        let text = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}";
        let template = ChatTemplate::new(text, None, None).unwrap();
        let messages = vec![Message::user("hello"); 20_000];
        assert!(template.render(&messages, true).unwrap().ends_with("user: hello"));
    }
}
