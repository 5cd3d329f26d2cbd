//! `shammah config show | check | init | path`.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use fs_err::OpenOptions;
use serde_json::{Map, Value, json};

use super::args::{ConfigCommand, GlobalArgs};
use super::context::{home_path, load_config};
use super::exit::{self, Exit, UsageError};
use super::output::{self, Table};
use crate::config::{Config, DEFAULT_TOML, FILE_NAME, Loaded};
use crate::hub;
use crate::models;
use crate::store::Home;

/// Runs the command.
///
/// # Errors
/// A wrong configuration, or a file that is in the way.
pub fn run(command: &ConfigCommand, global: &GlobalArgs) -> Result<Exit> {
    let home = home_path(global)?;
    match command {
        ConfigCommand::Show(args) => show(&load_config(global, &home, Vec::new())?, args.json)?,
        ConfigCommand::Check(args) => {
            let loaded = load_config(global, &home, Vec::new())?;
            check_model(&loaded)?;
            check(&loaded, args.json)?;
        }
        ConfigCommand::Init(args) => init(&home, args.json)?,
        ConfigCommand::Path(args) => {
            let path = home.join(FILE_NAME);
            match args.json {
                true => output::json(&json!({"path": path, "exists": path.exists()}))?,
                false => output::line(&path.display().to_string())?,
            }
        }
    }
    Ok(Exit::Done)
}

fn show(loaded: &Loaded, as_json: bool) -> Result<()> {
    let values = flat(&serde_json::to_value(&loaded.config)?);
    let origin = |key: &str| loaded.origins.get(key).map(ToString::to_string);
    if as_json {
        let with_origin = |(key, value): &(String, Value)| {
            (key.clone(), json!({"value": value, "origin": origin(key)}))
        };
        let all: Map<String, Value> = values.iter().map(with_origin).collect();
        return Ok(output::json(&all)?);
    }
    let mut table = Table::new(&["KEY", "VALUE", "ORIGIN"]);
    for (key, value) in &values {
        table.row(&[key.clone(), value.to_string(), output::or_dash(origin(key))]);
    }
    Ok(table.print()?)
}

/// Checks that the configured model would load, unless it is one of the hub, which may not be here yet.
fn check_model(loaded: &Loaded) -> Result<()> {
    const KEY: &str = "model.source";
    let named = &loaded.config.model.source;
    if hub::named(named).is_some() {
        return Ok(());
    }
    let found = super::model::find(named);
    let checked = found.and_then(|source| Ok(models::check(&source)?));
    checked.map_err(|error| {
        let origin = loaded.origins.get(KEY).map(ToString::to_string).unwrap_or_default();
        let message = format!("{KEY} = \"{named}\" ({origin}): {}", exit::message(&error));
        UsageError(message).into()
    })
}

fn check(loaded: &Loaded, as_json: bool) -> Result<()> {
    let keys = loaded.origins.len();
    let is_default =
        |origin: &&crate::config::Origin| matches!(origin, crate::config::Origin::Default { .. });
    let defaults = loaded.origins.values().filter(is_default).count();
    // A file that spells out the defaults changes nothing.
    let usual: Map<String, Value> =
        flat(&serde_json::to_value(Config::defaults()?)?).into_iter().collect();
    let values = flat(&serde_json::to_value(&loaded.config)?);
    let changed = values.iter().filter(|(key, value)| usual.get(key) != Some(value)).count();
    if as_json {
        let found = json!({"valid": true, "keys": keys, "defaults": defaults, "changed": changed});
        return Ok(output::json(&found)?);
    }
    Ok(output::line(&format!(
        "the configuration is valid: {keys} keys, {changed} of them changed"
    ))?)
}

fn init(home: &Path, as_json: bool) -> Result<()> {
    let home = Home::open_or_create(home)?;
    let path = home.config();
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = match file {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let message =
                format!("{} exists already: edit it, or move it away first", path.display());
            return Err(UsageError(message).into());
        }
        other => other?,
    };
    let written = file.write_all(DEFAULT_TOML.as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a file would be an invalid configuration, or one that hides defaults.
        let _ = fs_err::remove_file(&path);
        return Err(error).context("nothing was written");
    }
    match as_json {
        true => output::json(&json!({"path": path}))?,
        false => output::line(&format!("wrote the commented defaults to {}", path.display()))?,
    }
    Ok(())
}

/// Flattens nested tables to `a.b.c` and value.
fn flat(value: &Value) -> Vec<(String, Value)> {
    fn walk(prefix: &str, value: &Value, into: &mut Vec<(String, Value)>) {
        let Value::Object(map) = value else {
            into.push((prefix.to_owned(), value.clone()));
            return;
        };
        for (name, inner) in map {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            walk(&key, inner, into);
        }
    }
    let mut all = Vec::new();
    walk("", value, &mut all);
    all
}
