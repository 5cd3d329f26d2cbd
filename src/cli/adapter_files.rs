//! `shammah adapters export | import`: adapters between data directories, and from PEFT.

use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use fs_err::File;
use serde_json::{Value, json};

use super::args::{ExportArgs, ImportArgs};
use super::context::Session;
use super::exit::{self, UsageError};
use super::{model, output};
use crate::domain::{AdapterId, DEFAULT_DOMAIN};
use crate::lora::{self, CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE};
use crate::store::{AdapterRow, NewAdapter};
use crate::text;

/// Largest files that are copied: those that loading reads too.
const MAX_BYTES: [(&str, u64); 3] =
    [(WEIGHTS_FILE, 4 << 30), (CONFIG_FILE, 1 << 20), (TRAINING_FILE, 16 << 20)];

/// Writes an adapter as PEFT reads it into a directory that appears whole.
///
/// # Errors
/// No such adapter, a directory that exists, or files that cannot be read or written.
pub fn export(session: &Session, args: &ExportArgs) -> Result<()> {
    let row = session.store.adapter(&args.id)?;
    let (from, to) = (session.home.adapter(&row.id), std::path::absolute(&args.dir)?);
    if to.symlink_metadata().is_ok() {
        let message = format!("{} exists already: choose another directory", to.display());
        return Err(UsageError(message).into());
    }
    let Some(parent) = to.parent() else { bail!("{} is no place for an adapter", to.display()) };
    let partial = tempfile::Builder::new().prefix(".shammah-export-").tempdir_in(parent)?;
    let mut bytes = 0;
    for name in [WEIGHTS_FILE, CONFIG_FILE] {
        bytes += copy(&from, partial.path(), name)?;
    }
    let record = read_record(&from)?
        .with_context(|| format!("adapter {} has no {TRAINING_FILE}", row.id))?;
    let record = if args.with_provenance { record } else { lora::exported_record(&record) };
    bytes += write_record(partial.path(), &record)?;
    File::open(partial.path())?.sync_all()?;
    fs_err::rename(partial.keep(), &to)?;
    File::open(parent)?.sync_all()?;
    if args.json.json {
        let object = json!({"exported": row.id, "path": to, "bytes": bytes, "provenance": args.with_provenance});
        return Ok(output::json(&object)?);
    }
    let left_out = match args.with_provenance {
        true => "with the ids of its marks",
        false => "without the ids of its marks (--with-provenance keeps them)",
    };
    Ok(output::line(&format!("wrote adapter {} to {} {left_out}", row.id, to.display()))?)
}

/// Takes in an adapter: its files are copied, and the copy is checked as at every loading before anything knows of it.
///
/// # Errors
/// Files that are missing, too large or no adapter of the model in use; a name that is taken; a store that cannot be
/// written.
pub fn import(session: &Session, args: &ImportArgs) -> Result<()> {
    let id = name_of(args)?;
    let room = session.store.import_directory()?;
    let row = take_in(session, args, id, room.path()).map_err(|error| {
        // The user knows the directory that was copied, not the copy.
        let (text, inside) = (exit::message(&error), room.path().display().to_string());
        match text.contains(&inside) {
            true => anyhow!(text.replace(&inside, &args.dir.display().to_string())),
            false => error,
        }
    })?;
    if args.json.json {
        return Ok(output::json(&row)?);
    }
    Ok(output::line(&format!(
        "imported adapter {} (rank {}, {}): `shammah adapters load {}` makes it live",
        row.id,
        row.rank,
        text::bytes(row.bytes),
        row.id
    ))?)
}

/// Copies the adapter to `room`, checks the copy and hands it to the store.
fn take_in(session: &Session, args: &ImportArgs, id: AdapterId, room: &Path) -> Result<AdapterRow> {
    for name in [WEIGHTS_FILE, CONFIG_FILE] {
        copy(&args.dir, room, name)?;
    }
    if args.dir.join(TRAINING_FILE).exists() {
        copy(&args.dir, room, TRAINING_FILE)?;
    }
    let given = read_record(room)?;
    let model = model::load(session)?;
    let adapter = lora::load_verified(room, &model)?;
    let examples = given.as_ref().and_then(|record| record["measurements"]["examples"].as_u64());
    write_record(room, &lora::imported_record(given.as_ref(), &adapter, &model))?;
    Ok(session.store.import_adapter(&NewAdapter {
        id,
        domain: args.domain.clone().unwrap_or_else(|| DEFAULT_DOMAIN.to_owned()),
        base: model.name.clone(),
        base_hash: model.base_hash.clone(),
        rank: adapter.config().rank,
        target_modules: adapter.config().target_modules.clone(),
        examples: examples.and_then(|count| usize::try_from(count).ok()).unwrap_or(0),
        dir: room.to_owned(),
    })?)
}

/// The name that was given, or that of the directory.
fn name_of(args: &ImportArgs) -> Result<AdapterId> {
    if let Some(name) = &args.name {
        return Ok(name.clone());
    }
    let directory = fs_err::canonicalize(&args.dir)
        .with_context(|| format!("give a directory with {WEIGHTS_FILE} and {CONFIG_FILE}"))?;
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    name.parse().map_err(|error| UsageError(format!("{error}: give a name with --name")).into())
}

/// Copies a file of an adapter durably, and returns its size. Only what is a file and not too large is read.
fn copy(from: &Path, to: &Path, name: &str) -> Result<u64> {
    let path = from.join(name);
    let limit = MAX_BYTES.iter().find(|(known, _)| *known == name).map_or(0, |(_, limit)| *limit);
    let metadata = fs_err::metadata(&path)?;
    if !metadata.is_file() {
        bail!("{} is no file: an adapter has {WEIGHTS_FILE} and {CONFIG_FILE}", path.display());
    }
    let mut target = File::create(to.join(name))?;
    let copied = io::copy(&mut File::open(&path)?.take(limit + 1), &mut target)?;
    if copied > limit {
        bail!(
            "{} has more than the {limit} bytes that are read: use a smaller adapter",
            path.display()
        );
    }
    target.sync_all()?;
    Ok(copied)
}

fn read_record(directory: &Path) -> Result<Option<Value>> {
    let path = directory.join(TRAINING_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs_err::read(&path)?;
    let record = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is no training record: remove it", path.display()))?;
    Ok(Some(record))
}

fn write_record(directory: &Path, record: &Value) -> Result<u64> {
    let json = serde_json::to_string_pretty(record)? + "\n";
    let mut file = File::create(directory.join(TRAINING_FILE))?;
    io::Write::write_all(&mut file, json.as_bytes())?;
    file.sync_all()?;
    Ok(json.len() as u64)
}
