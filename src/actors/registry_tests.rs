use std::sync::Mutex;

use actix::Addr;
use tempfile::TempDir;

use super::*;
use crate::actors::base::AdapterLoader;
use crate::actors::model_thread::ModelLoader;
use crate::actors::test_kit::{Log, base, idle, probe, question, temp_home};
use crate::domain::{DEFAULT_DOMAIN, Mark};
use crate::eval::Promotion;
use crate::lora::LoraError;
use crate::store::{JobMetrics, NewFeedback, NewJob};

struct Stage {
    _dir: TempDir,
    home: Home,
    db: Db,
    actor: Addr<AdapterRegistryActor>,
    swaps: Log<SetLive>,
    changes: Log<LiveChanged>,
    damaged: Arc<Mutex<bool>>,
    current: CurrentBase,
}

fn is_damaged_at(path: &std::path::Path) -> LoraError {
    LoraError::Invalid {
        path: path.to_owned(),
        problem: "is damaged".to_owned(),
        remedy: "train again".to_owned(),
    }
}

fn stage() -> Stage {
    stage_with(BTreeMap::new())
}

fn stage_with(mixtures: BTreeMap<String, Vec<Term>>) -> Stage {
    let (dir, home) = temp_home();
    let db = Db::new(Store::open(&home).unwrap());
    let (inference, swaps) = probe(|_: &SetLive| ());
    let (changed, changes) = probe(|_: &LiveChanged| ());
    let damaged = Arc::new(Mutex::new(false));
    let is_damaged = Arc::clone(&damaged);
    let nothing = || Box::new(|| Err("no file".to_owned())) as ModelLoader;
    let load: AdapterLoader = Arc::new(move |path| match *is_damaged.lock().unwrap() {
        true => Err(is_damaged_at(path)),
        false => Ok(AdapterSet::empty()),
    });
    let current = CurrentBase::new(base("tiny", "b", nothing, load));
    let parts = RegistryParts {
        mixtures,
        home: home.clone(),
        db: db.clone(),
        current: current.clone(),
        inference: Some(inference),
        changed: Some(changed),
        answering: Answering::default(),
        right: QueueRight::new(
            &home,
            home.try_lock_queue().unwrap(),
            Port::unconnected(ActorName::Console),
        ),
    };
    let actor = AdapterRegistryActor::new(parts, None).start();
    Stage { _dir: dir, home, db, actor, swaps, changes, damaged, current }
}

fn id(text: &str) -> AdapterId {
    text.parse().unwrap()
}

impl Stage {
    /// Brings a job as far as the gate and publishes what its worker would have left.
    async fn publish(&self, name: &str) -> Result<Published, ActorError> {
        self.publish_on(name, "b").await
    }

    /// The same for a base by the letter of its hash.
    async fn publish_on(&self, name: &str, base: &str) -> Result<Published, ActorError> {
        let base_hash = base.repeat(64);
        let live_on = base_hash.clone();
        let (home, name_id) = (self.home.clone(), id(name));
        let text = name.to_owned();
        let prepare = move |store: &Store| {
            let new = NewFeedback {
                messages: question(&format!("what about {text}?")),
                response: text,
                mark: Mark::Good,
                weight: 10.0,
                note: None,
                fix: None,
                domain: "general".to_owned(),
                adapter: None,
                base: None,
            };
            store.add_feedback(&new)?;
            let job = store.enqueue_job(&NewJob {
                name: Some(name_id),
                domain: "general".to_owned(),
                from: Default::default(),
                priority: 0,
                params: serde_json::json!({}),
                replay_limit: 0,
                only: None,
                base: None,
                max_queued: 100,
            })?;
            store.claim_next()?;
            let parent = store.live(&live_on, "general")?.map(|row| row.id);
            store.set_job_parent(job.id, parent.as_ref())?;
            store.set_evaluating(job.id)
        };
        let job = self.db.call(prepare).await.unwrap();
        let dir = home.outcome(job.id);
        fs_err::create_dir_all(&dir).unwrap();
        for file in ["adapter_model.safetensors", "adapter_config.json", "training.json"] {
            fs_err::write(dir.join(file), name).unwrap();
        }
        let message = PublishAdapter {
            job: job.id,
            id: id(name),
            dir,
            domain: "general".to_owned(),
            rank: 4,
            target_modules: vec!["q_proj".to_owned()],
            base: "tiny".to_owned(),
            base_hash,
            examples: 1,
            metrics: JobMetrics::default(),
            promotion: Promotion::for_tests(),
        };
        self.actor.send(message).await.unwrap()
    }

    /// The names of the last swap; `None` is the base.
    fn last_swap(&self) -> Option<String> {
        let live = self.swaps.take().pop().expect("a swap").live?;
        Some(live.ids[0].0.to_string())
    }

    /// Waits until the console is told that another process made this live; `None` is the base.
    async fn told_from_elsewhere(&self, live: Option<&str>) {
        let wanted: Vec<AdapterId> = live.into_iter().map(id).collect();
        let fits = |change: &LiveChanged| change.elsewhere && change.adapters == wanted;
        self.changes.until("news from elsewhere", fits).await;
    }

    async fn live(&self) -> Option<AdapterId> {
        let find = |store: &Store| store.live(&"b".repeat(64), "general");
        self.db.call(find).await.unwrap().map(|row| row.id)
    }

    async fn rollback(&self) -> Result<RolledBack, ActorError> {
        self.actor.send(RollbackAdapter { domain: "general".to_owned() }).await.unwrap()
    }
}

#[actix::test]
async fn a_published_adapter_is_stored_swapped_in_and_told() {
    let stage = stage();
    let published = stage.publish("first").await.unwrap();
    assert!(published.live && published.path.join("adapter_config.json").is_file());
    assert_eq!(stage.last_swap().as_deref(), Some("first"));
    assert_eq!(stage.live().await, Some(id("first")));
    stage.changes.until("news", |change| change.adapters == [id("first")]).await;
}

#[actix::test]
async fn a_deleted_adapter_leaves_the_configured_mixtures() {
    let term = |adapter: Option<&str>| Term { adapter: adapter.map(id), weight: 0.5 };
    let mixture = vec![term(None), term(Some("first"))];
    let stage = stage_with([("general".to_owned(), mixture)].into());
    stage.publish("first").await.unwrap();
    // Not its parent, or it could not be deleted.
    let unload = UnloadAdapter { id: None, domain: "general".to_owned() };
    stage.actor.send(unload).await.unwrap().unwrap();
    stage.publish("second").await.unwrap();
    let names = || {
        let live = stage.swaps.take().pop().expect("a swap").live.expect("adapters");
        live.ids.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["second", "first"]);
    stage.actor.send(DeleteAdapter { id: id("first") }).await.unwrap().unwrap();
    assert_eq!(names(), ["second"]);
}

#[actix::test]
async fn a_damaged_outcome_changes_nothing() {
    let stage = stage();
    *stage.damaged.lock().unwrap() = true;
    let refused = stage.publish("first").await;
    assert!(matches!(refused, Err(ActorError::Adapter(text)) if text.contains("is damaged")));
    assert_eq!((stage.swaps.len(), stage.live().await), (0, None));
}

#[actix::test]
async fn rollback_goes_to_the_parent_then_to_the_base_then_refuses() {
    let stage = stage();
    stage.publish("first").await.unwrap();
    stage.publish("second").await.unwrap();
    let back = stage.rollback().await.unwrap();
    assert_eq!((back.from, back.to), (id("second"), Some(id("first"))));
    assert_eq!(stage.last_swap().as_deref(), Some("first"));
    let back = stage.rollback().await.unwrap();
    assert_eq!((back.from, back.to), (id("first"), None));
    assert_eq!(stage.last_swap(), None);
    assert!(matches!(stage.rollback().await, Err(ActorError::Refused(_))));
}

#[actix::test]
async fn a_rollback_to_a_damaged_parent_leaves_the_adapter_live() {
    let stage = stage();
    stage.publish("first").await.unwrap();
    stage.publish("second").await.unwrap();
    stage.swaps.take();
    *stage.damaged.lock().unwrap() = true;
    assert!(matches!(stage.rollback().await, Err(ActorError::Adapter(_))));
    assert_eq!((stage.live().await, stage.swaps.len()), (Some(id("second")), 0));
}

#[actix::test]
async fn load_unload_and_delete_follow_the_row() {
    let stage = stage();
    stage.publish("first").await.unwrap();
    let gone = stage
        .actor
        .send(UnloadAdapter { id: None, domain: DEFAULT_DOMAIN.to_owned() })
        .await
        .unwrap()
        .unwrap();
    assert_eq!((gone, stage.last_swap()), (vec![id("first")], None));
    let again = stage
        .actor
        .send(UnloadAdapter { id: Some(id("first")), domain: DEFAULT_DOMAIN.to_owned() })
        .await
        .unwrap();
    assert!(matches!(again, Err(ActorError::Refused(_))));
    let line = stage.actor.send(LoadAdapter { id: id("first") }).await.unwrap().unwrap();
    assert!(line.live && line.fits);
    assert_eq!(stage.last_swap().as_deref(), Some("first"));
    let live = stage.actor.send(DeleteAdapter { id: id("first") }).await.unwrap();
    assert!(matches!(live, Err(ActorError::Refused(_))));
    stage.rollback().await.unwrap();
    let bytes = stage.actor.send(DeleteAdapter { id: id("first") }).await.unwrap().unwrap();
    assert_eq!(bytes, 15);
    assert!(stage.actor.send(ListAdapters).await.unwrap().unwrap().is_empty());
    let unknown = stage.actor.send(LoadAdapter { id: id("first") }).await.unwrap();
    assert!(matches!(unknown, Err(ActorError::Refused(_))));
}

#[actix::test]
async fn a_damaged_adapter_is_refused_and_the_old_one_stays() {
    let stage = stage();
    stage.publish("first").await.unwrap();
    stage.publish("second").await.unwrap();
    stage.swaps.take();
    *stage.damaged.lock().unwrap() = true;
    let refused = stage.actor.send(LoadAdapter { id: id("first") }).await.unwrap();
    assert!(matches!(refused, Err(ActorError::Adapter(_))));
    assert_eq!((stage.live().await, stage.swaps.len()), (Some(id("second")), 0));
}

#[actix::test]
async fn at_start_the_live_adapter_is_swapped_in_and_strangers_are_removed() {
    let stage = stage();
    stage.publish("first").await.unwrap();
    stage.swaps.take();
    let stranger = stage.home.adapter(&id("stranger"));
    fs_err::create_dir(&stranger).unwrap();
    let lines = stage.actor.send(RestoreLive).await.unwrap().unwrap();
    assert!(lines.len() == 1 && lines[0].contains("stranger"), "{lines:?}");
    assert!(!stranger.exists());
    assert_eq!(stage.last_swap().as_deref(), Some("first"));
}

#[actix::test]
async fn at_start_a_damaged_adapter_is_set_aside_and_the_base_answers() {
    let stage = stage();
    stage.publish("first").await.unwrap();
    stage.swaps.take();
    *stage.damaged.lock().unwrap() = true;
    let lines = stage.actor.send(RestoreLive).await.unwrap().unwrap();
    assert!(lines.len() == 1 && lines[0].contains("first"), "{lines:?}");
    assert!(lines[0].contains("was set aside") && lines[0].contains("the base model"), "{lines:?}");
    assert_eq!((stage.swaps.len(), stage.live().await), (0, None));
    assert!(stage.home.quarantine().join("first").exists());
}

#[actix::test]
async fn usage_is_counted_for_base_and_adapters() {
    let stage = stage();
    let row = |adapters| RecordUsage {
        base: "tiny".to_owned(),
        adapters,
        prompt_tokens: 5,
        new_tokens: 2,
        prefill_ms: 1,
        decode_ms: 1,
        finish_reason: crate::engine::FinishReason::Stop,
    };
    stage.actor.send(row(vec![])).await.unwrap();
    stage.actor.send(row(vec![(id("first"), 1.0)])).await.unwrap();
    let usage = stage.db.call(|store| store.usage()).await.unwrap();
    let answers: Vec<_> = usage.iter().map(|u| (u.adapter.as_deref(), u.answers)).collect();
    assert_eq!(answers, [(None, 1), (Some("first"), 1)]);
}

#[actix::test]
async fn what_another_process_makes_live_answers_here_and_is_told() {
    let stage = stage();
    tokio::time::pause();
    stage.publish("first").await.unwrap();
    stage.publish("second").await.unwrap();
    let other = Store::open(&stage.home).unwrap();
    other.rollback(&"b".repeat(64), "general").unwrap();
    stage.told_from_elsewhere(Some("first")).await;
    assert_eq!(stage.last_swap().as_deref(), Some("first"));
    other.unload(&id("first")).unwrap();
    stage.told_from_elsewhere(None).await;
    assert_eq!(stage.last_swap(), None);
    other.set_live(&id("second"), &"b".repeat(64)).unwrap();
    stage.told_from_elsewhere(Some("second")).await;
    assert_eq!(stage.last_swap().as_deref(), Some("second"));
}

#[actix::test]
async fn what_this_process_makes_live_is_no_news_from_elsewhere() {
    let stage = stage();
    tokio::time::pause();
    stage.publish("first").await.unwrap();
    stage.publish("second").await.unwrap();
    stage.rollback().await.unwrap();
    tokio::time::sleep(LIVE_POLL * 3).await;
    assert_eq!(stage.swaps.len(), 3);
    assert!(!stage.changes.any(|change| change.elsewhere));
}

#[actix::test]
async fn a_damaged_adapter_from_elsewhere_is_tried_once_and_the_old_one_answers() {
    let stage = stage();
    tokio::time::pause();
    stage.publish("first").await.unwrap();
    stage.publish("second").await.unwrap();
    stage.swaps.take();
    *stage.damaged.lock().unwrap() = true;
    let other = Store::open(&stage.home).unwrap();
    other.set_live(&id("first"), &"b".repeat(64)).unwrap();
    tokio::time::sleep(LIVE_POLL * 3).await;
    *stage.damaged.lock().unwrap() = false;
    tokio::time::sleep(LIVE_POLL * 3).await;
    assert_eq!(stage.swaps.len(), 0);
    other.set_live(&id("second"), &"b".repeat(64)).unwrap();
    tokio::time::sleep(LIVE_POLL * 3).await;
    assert_eq!(stage.swaps.len(), 0, "it answers already");
}

#[actix::test]
async fn another_base_brings_its_own_adapters_and_leaves_those_of_the_old_one_alone() {
    let stage = stage();
    stage.publish("ours").await.unwrap();
    let theirs = stage.publish_on("theirs", "c").await.unwrap();
    assert!(!theirs.live, "it is live on its own base, which does not answer here");
    stage.swaps.take();

    assert!(stage.actor.send(AdoptBase).await.unwrap().is_err(), "none was put forward");
    stage.current.propose(idle("other", "c"));
    assert_eq!(stage.current.get().hash(), "b".repeat(64));
    assert_eq!(stage.actor.send(AdoptBase).await.unwrap(), Ok(Vec::new()));
    assert_eq!(stage.current.get().hash(), "c".repeat(64));
    let swaps = stage.swaps.take();
    let swap = &swaps[0];
    assert_eq!((swaps.len(), swap.base.as_str()), (1, "c".repeat(64).as_str()));
    assert_eq!(swap.live.as_ref().unwrap().ids[0].0, id("theirs"));

    let lines = stage.actor.send(ListAdapters).await.unwrap().unwrap();
    let fits: Vec<(&str, bool)> = lines.iter().map(|l| (l.id.as_str(), l.fits)).collect();
    assert_eq!(fits, [("theirs", true), ("ours", false)]);
    let refused = stage.actor.send(LoadAdapter { id: id("ours") }).await.unwrap();
    assert!(refused.unwrap_err().to_string().contains("tiny"));
    let back = stage
        .actor
        .send(UnloadAdapter { id: None, domain: DEFAULT_DOMAIN.to_owned() })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back, [id("theirs")]);
    assert_eq!(stage.live().await, Some(id("ours")), "still live on its own base");
}

#[actix::test]
async fn a_damaged_adapter_of_another_base_is_told_and_that_base_answers_alone() {
    let stage = stage();
    stage.publish_on("theirs", "c").await.unwrap();
    stage.swaps.take();
    let nothing = || Box::new(|| Err("no file".to_owned())) as ModelLoader;
    let damaged: AdapterLoader = Arc::new(|path| Err(is_damaged_at(path)));
    stage.current.propose(base("other", "c", nothing, damaged));
    let lines = stage.actor.send(AdoptBase).await.unwrap().unwrap();
    assert!(lines[0].contains("\"theirs\"") && lines[0].contains("is damaged"), "{lines:?}");
    assert_eq!((stage.swaps.len(), stage.current.get().line.name.as_str()), (0, "other"));
}

#[actix::test]
async fn an_adapter_that_may_be_read_another_time_stays_where_it_is() {
    let stage = stage();
    stage.publish_on("theirs", "c").await.unwrap();
    let nothing = || Box::new(|| Err("no file".to_owned())) as ModelLoader;
    let busy: AdapterLoader =
        Arc::new(|_| Err(LoraError::Io(std::io::Error::other("too many open files"))));
    stage.current.propose(base("other", "c", nothing, busy));
    let lines = stage.actor.send(AdoptBase).await.unwrap().unwrap();
    assert!(lines[0].contains("cannot be loaded") && lines[0].contains("too many"), "{lines:?}");
    assert!(stage.home.adapter(&id("theirs")).exists() && !stage.home.quarantine().exists());
}

#[actix::test]
async fn to_unload_in_a_domain_leaves_the_others_alone() {
    let stage = stage();
    stage.publish("first").await.unwrap();
    let other = UnloadAdapter { id: None, domain: "rust".to_owned() };
    assert!(matches!(stage.actor.send(other).await.unwrap(), Err(ActorError::Refused(_))));
    assert_eq!(stage.live().await, Some(id("first")));
}
