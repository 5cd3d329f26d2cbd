//! A file of marks. What is read keeps the promises that the store relies on.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shammah::cli::feedback_file::{self, Reading};
use shammah::config::Config;
use shammah::domain::Mark;

static CONFIG: LazyLock<Config> = LazyLock::new(|| Config::defaults().expect("the defaults"));

fuzz_target!(|bytes: &[u8]| {
    let reading = Reading { weights: &CONFIG.feedback, domain: None, mark: Mark::Good };
    match feedback_file::read(bytes, "marks.jsonl", reading) {
        Ok(marks) => {
            for mark in marks.rows {
                assert!(mark.weight.is_finite() && mark.weight > 0.0, "{mark:?}");
                assert!(!mark.messages.is_empty(), "{mark:?}");
            }
        }
        // One line for the user, whatever was in the file.
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
});
