//! The console at a real terminal, driven by hand: `cargo test --test console_screen -- --ignored --nocapture`.

mod console_kit;

use std::io::IsTerminal;
use std::time::Duration;

use console_kit::{Script, run};
use shammah::actors::console::{Frontend, History};

#[test]
#[ignore = "needs a terminal and a person (or tmux) that types"]
fn by_hand() {
    assert!(std::io::stdin().is_terminal(), "run it in a terminal");
    let folder = tempfile::tempdir().expect("a folder");
    let history = History::new(folder.path().join("history"), 100);
    let frontend = Frontend::terminal(history, true).expect("the terminal can be taken over");
    let script = Script {
        pause: Duration::from_millis(80),
        steps: 100,
        step_pause: Duration::from_millis(300),
        adapter: true,
        load_pause: Duration::from_secs(3),
        rejected: false,
        builtin: false,
    };
    assert_eq!(run(frontend, script), 0);
}
