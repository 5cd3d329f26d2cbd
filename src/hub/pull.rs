//! A model of the hub into the cache: which files, and in which order.

use std::ops::ControlFlow;

use hf_hub::api::RepoInfo;
use hf_hub::{Cache, Repo, RepoType};

use super::request::Client;
use super::transfer::Transfer;
use super::{Found, Hub, HubError, HubId, Notice, is_hash, is_name, place};
use crate::models::shards;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Files that a model may have.
const OPTIONAL: [&str; 3] =
    ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// Fetches what this program reads of a model. The weights come last, so that a snapshot with them has all the rest; the
/// revision points to the commit only then, so that an interrupted download hides no older one.
pub(super) fn pull(
    hub: &Hub,
    id: &HubId,
    tell: &mut dyn FnMut(Notice<'_>) -> ControlFlow<()>,
) -> Result<Found, HubError> {
    let client = Client::new(hub)?;
    let at =
        |revision: &str| Repo::with_revision(id.repo.clone(), RepoType::Model, revision.to_owned());
    let info = info(&client, id, &at(id.revision()).api_url())?;
    let mut transfer = Transfer {
        client,
        id,
        places: Cache::new(hub.cache.clone()).repo(at(id.revision())),
        repo: at(&info.sha),
        commit: info.sha.clone(),
        tell,
    };
    match &id.file {
        Some(file) if !has(&info, file) => return Err(no_model(id, "such file", &info)),
        Some(file) => {
            transfer.file(file)?;
        }
        None => files(&mut transfer, &info)?,
    }
    if id.revision() != info.sha {
        place::file(&hub.reference(&id.repo, id.revision()), &info.sha)?;
    }
    hub.cached(id)
}

fn files(transfer: &mut Transfer<'_>, info: &RepoInfo) -> Result<(), HubError> {
    let id = transfer.id;
    for (name, missing) in [(CONFIG, CONFIG), (TOKENIZER, TOKENIZER)] {
        if !has(info, name) {
            return Err(no_model(id, missing, info));
        }
    }
    if !has(info, INDEX) && !has(info, WEIGHTS) {
        return Err(no_model(id, "*.safetensors", info));
    }
    transfer.file(CONFIG)?;
    transfer.file(TOKENIZER)?;
    for name in OPTIONAL.into_iter().filter(|name| has(info, name)) {
        transfer.file(name)?;
    }
    if !has(info, INDEX) {
        transfer.file(WEIGHTS)?;
        return Ok(());
    }
    let index = transfer.file(INDEX)?;
    let client = &transfer.client;
    let problem = |problem: String| client.answer(INDEX, problem);
    let shards = shards(&index).map_err(|error| problem(format!("with a wrong index: {error}")))?;
    if let Some(name) = shards.iter().find(|name| !is_name(name)) {
        return Err(problem(format!("with an index that names \"{name}\"")));
    }
    shards.iter().try_for_each(|name| transfer.file(name).map(|_| ()))
}

/// Asks the hub for the commit of the revision and its files.
fn info(client: &Client<'_>, id: &HubId, place: &str) -> Result<RepoInfo, HubError> {
    let answer = |problem: String| client.answer(&id.to_string(), problem);
    let url = format!("{}/api/{place}", client.hub.endpoint);
    let mut response = client.follow(url, None, &id.to_string(), |_| true)?;
    if !response.status().is_success() {
        return Err(client.refusal(id, &response, &id.repo));
    }
    let info: RepoInfo = response
        .body_mut()
        .read_json()
        .map_err(|error| answer(format!("what is no description of a model: {error}")))?;
    if is_hash(&info.sha) { Ok(info) } else { Err(answer("a commit that is none".to_owned())) }
}

fn has(info: &RepoInfo, name: &str) -> bool {
    info.siblings.iter().any(|file| file.rfilename == name)
}

fn no_model(id: &HubId, missing: &'static str, info: &RepoInfo) -> HubError {
    let gguf = info.siblings.iter().find(|file| super::is_gguf(&file.rfilename));
    let remedy = match gguf {
        Some(file) => format!("name one of its GGUF files, as in {}/{}", id.repo, file.rfilename),
        None => "choose a model in safetensors files, with a tokenizer.json".to_owned(),
    };
    HubError::NoModel { id: id.to_string(), missing, remedy }
}
