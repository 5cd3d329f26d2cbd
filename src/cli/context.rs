//! What commands need: the data directory's path, the configuration, the store.

use std::cell::OnceCell;
use std::env;
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError, Flag, LoadArgs, Loaded};

use super::args::GlobalArgs;
use super::exit::UsageError;
use super::output;
use crate::hub::Resolved;
use crate::logging::{self, FilePlan, LogPlan};
use crate::store::{Home, Store};

/// Names the data directory.
const HOME_VARIABLE: &str = "SHAMMAH_HOME";
/// The data directory in the user's home.
const HOME_NAME: &str = ".shammah";

/// Finds the data directory's path: `--home`, `SHAMMAH_HOME`, else `~/.shammah`. Creates nothing.
///
/// # Errors
/// When neither is given and the user has no home directory.
pub fn home_path(global: &GlobalArgs) -> Result<PathBuf, UsageError> {
    let not_empty = |path: &PathBuf| !path.as_os_str().is_empty();
    let given = global.home.clone().or_else(|| env::var_os(HOME_VARIABLE).map(PathBuf::from));
    if let Some(path) = given.filter(not_empty) {
        return Ok(path);
    }
    match env::home_dir().filter(not_empty) {
        Some(home) => Ok(home.join(HOME_NAME)),
        None => Err(UsageError(format!(
            "there is no home directory to keep data in: give one with --home DIR or {HOME_VARIABLE}"
        ))),
    }
}

/// Loads the configuration: files, environment, `--set` and flags.
///
/// # Errors
/// Whatever is wrong with the configuration.
pub fn load_config(
    global: &GlobalArgs,
    home: &Path,
    more_flags: Vec<Flag>,
) -> Result<Loaded, ConfigError> {
    let mut flags = Vec::new();
    let mut flag = |name, key, value: &Option<String>| {
        if let Some(value) = value {
            flags.push(Flag { name, key, value: value.clone() });
        }
    };
    flag("--model", "model.source", &global.model);
    flag("--device", "model.device", &global.device);
    flags.extend(more_flags);
    Config::load(&LoadArgs {
        home: Some(home.to_owned()),
        config_file: global.config.clone(),
        env: environment(),
        overrides: global.set.clone(),
        flags,
    })
}

/// The environment as text; what is no Unicode cannot set a key and is shown with replacement characters.
fn environment() -> Vec<(String, String)> {
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// The data directory, opened, with its configuration.
#[derive(Debug)]
pub struct Session {
    /// The data directory.
    pub home: Home,
    /// The configuration and its origins.
    pub loaded: Loaded,
    /// The database.
    pub store: Store,
    /// The configured model, once it was found: what moves in the cache while a command runs does not change its model.
    pub model: OnceCell<Resolved>,
}

impl Session {
    /// Loads the configuration, opens the data directory (making it if it is missing) and starts logging.
    ///
    /// # Errors
    /// A wrong configuration, or a data directory that cannot be used.
    pub fn open(global: &GlobalArgs, more_flags: Vec<Flag>) -> anyhow::Result<Self> {
        Self::open_for(global, more_flags, Audience::Command)
    }

    /// [`Session::open`] for a command or for the console.
    ///
    /// # Errors
    /// A wrong configuration, or a data directory that cannot be used.
    pub fn open_for(
        global: &GlobalArgs,
        more_flags: Vec<Flag>,
        audience: Audience,
    ) -> anyhow::Result<Self> {
        let path = home_path(global)?;
        let loaded = load_config(global, &path, more_flags)?;
        let home = Home::open_or_create(&path)?;
        start_log(global, &loaded.config, &home, audience);
        let store = Store::open(&home)?.with_secrets(loaded.config.feedback.secrets);
        Ok(Self { home, loaded, store, model: OnceCell::new() })
    }
}

/// Who looks at stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Somebody who typed a command: warnings, and what `-v` asks for.
    Command,
    /// Nobody: the console owns the screen.
    Console,
}

/// Starts the log as the configuration and `-v`, `-q` want it. A log that cannot be written is no reason to stop.
pub fn start_log(global: &GlobalArgs, config: &Config, home: &Home, audience: Audience) {
    let stderr = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let file = match global.verbose {
        0 | 1 => config.log.level.as_str(),
        _ => "debug",
    };
    let logs = home.logs();
    let plan = LogPlan {
        file: config.log.file.then_some(FilePlan {
            directory: logs.as_path(),
            level: file,
            keep_days: config.log.keep_days,
        }),
        stderr: (audience == Audience::Command).then_some(stderr),
    };
    if let Err(error) = logging::init(plan) {
        output::complain(&format!("shammah: {error}"));
    }
}
