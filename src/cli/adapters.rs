//! `shammah adapters list | show | load | unload | rollback | compare | delete | export | import`.

use anyhow::Result;
use serde_json::json;

use super::args::{AdaptersCommand, GlobalArgs};
use super::context::Session;
use super::exit::Exit;
use super::output::{self, Table, or_dash};
use super::{adapter_files, adapters_compare, gate_text, model};
use crate::domain::{AdapterId, DEFAULT_DOMAIN};
use crate::lora::TRAINING_FILE;
use crate::store::{AdapterRow, Store};

/// Runs the command.
///
/// # Errors
/// No such adapter, one that is in use, or a store that cannot be read or written.
pub fn run(command: &AdaptersCommand, global: &GlobalArgs) -> Result<Exit> {
    let session = Session::open(global, Vec::new())?;
    let store = &session.store;
    match command {
        AdaptersCommand::List(args) => list(&store.adapters()?, args.json)?,
        AdaptersCommand::Show(args) => show(store, &store.adapter(&args.id)?, args.json.json)?,
        AdaptersCommand::Load(args) => {
            let row = load(&session, &args.id)?;
            let text = format!("adapter {} is live in domain {}", row.id, row.domain);
            say(&row, &text, args.json.json)?;
        }
        AdaptersCommand::Rollback { domain, json } => {
            rollback(&session, domain.as_deref().unwrap_or(DEFAULT_DOMAIN), json.json)?;
        }
        AdaptersCommand::Unload(args) => {
            let row = store.unload(&args.id)?;
            let text = format!(
                "adapter {} is no longer live in domain {}: the base answers",
                row.id, row.domain
            );
            say(&row, &text, args.json.json)?;
        }
        AdaptersCommand::Compare(args) => adapters_compare::run(&session, args)?,
        AdaptersCommand::Export(args) => adapter_files::export(&session, args)?,
        AdaptersCommand::Import(args) => adapter_files::import(&session, args)?,
        AdaptersCommand::Delete(args) => {
            let bytes = store.adapter(&args.id)?.bytes;
            store.delete_adapter(&args.id)?;
            match args.json.json {
                true => output::json(&json!({"deleted": args.id, "bytes": bytes}))?,
                false => output::line(&format!("deleted adapter {} ({bytes} bytes)", args.id))?,
            }
        }
    }
    Ok(Exit::Done)
}

/// Makes an adapter live after a look at all of it: names, shapes, values, and that it can compute.
fn load(session: &Session, id: &AdapterId) -> Result<AdapterRow> {
    let store = &session.store;
    store.usable_adapter(id, &model::base_hash(session)?)?;
    let model = model::load(session)?;
    model::load_adapter(session, id, &model)?;
    Ok(store.set_live(id, &model.base_hash)?)
}

fn rollback(session: &Session, domain: &str, as_json: bool) -> Result<()> {
    let base = model::base_hash(session)?;
    let from = session.store.live(&base, domain)?.map(|row| row.id);
    let to = session.store.rollback(&base, domain)?;
    if as_json {
        return Ok(output::json(&json!({"domain": domain, "from": from, "to": to}))?);
    }
    let back_to = to.map_or_else(|| "the base".to_owned(), |id| format!("adapter {id}"));
    let from = or_dash(from);
    Ok(output::line(&format!("rolled back from adapter {from} to {back_to} in domain {domain}"))?)
}

fn say(row: &AdapterRow, text: &str, as_json: bool) -> std::io::Result<()> {
    if as_json { output::json(row) } else { output::line(text) }
}

/// Prints adapters that come oldest first the other way round.
fn list(rows: &[AdapterRow], as_json: bool) -> Result<()> {
    if as_json {
        return rows.iter().rev().try_for_each(output::json).map_err(Into::into);
    }
    let mut table = Table::new(&[
        "ID", "DOMAIN", "PARENT", "STATE", "LIVE", "BASE", "RANK", "EXAMPLES", "USED IN", "CREATED",
    ]);
    for row in rows.iter().rev() {
        table.row(&[
            row.id.to_string(),
            row.domain.clone(),
            or_dash(row.parent.as_ref()),
            row.state.to_string(),
            if row.live { "live" } else { "-" }.to_owned(),
            row.base.clone(),
            row.rank.to_string(),
            row.examples.to_string(),
            row.used_in.to_string(),
            output::time(row.created_at),
        ]);
    }
    Ok(table.print()?)
}

fn show(store: &Store, row: &AdapterRow, as_json: bool) -> Result<()> {
    if as_json {
        return Ok(output::json(row)?);
    }
    let mut fields = vec![
        ("id", row.id.to_string()),
        ("domain", row.domain.clone()),
        ("parent", row.parent.as_ref().map_or_else(|| "base".to_owned(), ToString::to_string)),
        ("state", row.state.to_string()),
        ("live", if row.live { "yes" } else { "no" }.to_owned()),
        ("base", format!("{} ({})", row.base, row.base_hash)),
        ("rank", row.rank.to_string()),
        ("target modules", row.target_modules.join(", ")),
        ("examples", row.examples.to_string()),
        ("used in", format!("{} answers", row.used_in)),
        ("created", output::time(row.created_at)),
        ("size", format!("{} bytes", row.bytes)),
        ("path", store.home().adapter(&row.id).display().to_string()),
    ];
    let seen = store.seen(&row.id)?;
    for (name, ids) in [
        ("  learned", &seen.learned),
        ("  replayed", &seen.replayed),
        ("  measured on", &seen.heldout),
        ("  from parents", &seen.inherited),
        ("  forgotten since", &seen.forgotten),
    ] {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        fields.extend((!ids.is_empty()).then(|| (name, ids.join(", "))));
    }
    fields.extend(cut_off(store, row).map(|share| ("compression", share)));
    match gate_text::report(&row.gate) {
        Some(report) => fields.extend(gate_text::rows(&report)),
        None => fields.push(("gate", row.gate.to_string())),
    }
    Ok(output::fields(&fields)?)
}

/// What an adapter that is a sum leaves out of it, in words.
fn cut_off(store: &Store, row: &AdapterRow) -> Option<String> {
    let path = store.home().adapter(&row.id).join(TRAINING_FILE);
    let record: serde_json::Value = serde_json::from_slice(&fs_err::read(path).ok()?).ok()?;
    let error = record.get("compression_error")?.as_f64()?;
    Some(format!("leaves out {:.2} % of parent and difference (Frobenius norm)", error * 100.0))
}
