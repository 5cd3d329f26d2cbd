//! Adapters: promotion, rollback, loading, deleting, usage.

use super::*;

#[test]
fn a_promoted_adapter_is_live_with_its_files() {
    let f = fixture();
    let row = f.train("first");
    assert!(row.live && row.state == AdapterState::Ready);
    assert_eq!((row.examples, row.rank, row.gate["kl"].as_f64()), (1, 16, Some(0.01)));
    assert!(row.bytes > 0);
    for name in ["adapter_model.safetensors", "adapter_config.json", "training.json"] {
        assert!(f.home.adapter(&row.id).join(name).is_file());
    }
    assert_eq!(f.store.live(BASE_HASH, "rust").unwrap(), None);
    assert_eq!(f.store.live("other", DEFAULT_DOMAIN).unwrap(), None);
}

#[test]
fn rollback_goes_from_parent_to_parent_and_then_to_the_base() {
    let f = fixture();
    for name in ["a", "b", "c"] {
        f.train(name);
    }
    assert_eq!(f.store.adapter(&id("c")).unwrap().parent, Some(id("b")));
    let back = || f.store.rollback(BASE_HASH, DEFAULT_DOMAIN);
    assert_eq!(back().unwrap(), Some(id("b")));
    assert_eq!(f.store.adapter(&id("c")).unwrap().state, AdapterState::RolledBack);
    assert_eq!(back().unwrap(), Some(id("a")));
    assert_eq!(back().unwrap(), None);
    assert_eq!(f.live(), None);
    let error = back().unwrap_err().to_string();
    assert!(error.contains("the base model is live"), "{error}");
    let again = f.store.set_live(&id("c"), BASE_HASH).unwrap();
    assert!(again.live && again.state == AdapterState::Ready);
    assert_eq!(f.live(), Some(id("c")));
}

#[test]
fn rollback_does_not_give_the_examples_back() {
    let f = fixture();
    f.train("a");
    f.store.rollback(BASE_HASH, DEFAULT_DOMAIN).unwrap();
    assert_eq!(f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap().examples, 0);
    assert!(
        !f.store.should_train(DEFAULT_DOMAIN, None, 1).unwrap(),
        "or it would train the same again"
    );
}

#[test]
fn rollback_skips_an_ancestor_whose_files_are_gone() {
    let f = fixture();
    for name in ["a", "b", "c"] {
        f.train(name);
    }
    std::fs::remove_dir_all(f.home.adapter(&id("b"))).unwrap();
    assert_eq!(f.store.rollback(BASE_HASH, DEFAULT_DOMAIN).unwrap(), Some(id("a")));
}

#[test]
fn rollback_skips_an_ancestor_of_another_base_or_domain() {
    let f = fixture();
    f.train("a");
    for (name, base_hash, domain) in [("b", "other", DEFAULT_DOMAIN), ("c", BASE_HASH, "rust")] {
        f.add(1);
        let job = f.measured_job(&NewJob { name: Some(id(name)), ..job() });
        f.store.set_job_parent(job.id, Some(&id("a"))).unwrap();
        let (base_hash, domain) = (base_hash.to_owned(), domain.to_owned());
        let adapter = NewAdapter { base_hash, domain, ..f.new_adapter(&job) };
        let promotion = Promotion::for_tests();
        f.store.finish_succeeded(job.id, &adapter, &metrics(), &promotion).unwrap();
        let back = f.store.rollback(&adapter.base_hash, &adapter.domain).unwrap();
        assert_eq!((back, f.live()), (None, Some(id("a"))), "{name}");
    }
}

#[test]
fn unload_makes_the_base_live_and_keeps_the_adapter() {
    let f = fixture();
    f.train("a");
    let row = f.store.unload(&id("a")).unwrap();
    assert!(!row.live && row.state == AdapterState::Ready);
    assert!(matches!(f.store.unload(&id("a")), Err(StoreError::AdapterNotLive(_))));
    assert!(f.home.adapter(&id("a")).exists());
}

#[test]
fn an_adapter_of_another_base_is_not_loaded() {
    let f = fixture();
    f.train("a");
    f.store.unload(&id("a")).unwrap();
    let error = f.store.set_live(&id("a"), "ffff").unwrap_err().to_string();
    assert!(error.contains("another base model (tiny 5f3c0a1b2d4e, loaded: ffff)"), "{error}");
    assert_eq!(f.live(), None);
    assert!(matches!(f.store.set_live(&id("z"), BASE_HASH), Err(StoreError::UnknownAdapter(_))));
}

#[test]
fn the_live_adapter_and_its_parent_are_not_deleted() {
    let f = fixture();
    for name in ["a", "b", "c"] {
        f.train(name);
    }
    let refused = |name: &str| f.store.delete_adapter(&id(name)).unwrap_err().to_string();
    assert!(refused("c").contains("\"c\" is live"), "{}", refused("c"));
    assert!(refused("b").contains("parent of \"c\""), "{}", refused("b"));
    f.store.delete_adapter(&id("a")).unwrap();
    assert!(!f.home.adapter(&id("a")).exists());
    assert_eq!(f.store.adapter(&id("b")).unwrap().parent, None, "its child takes its parent");
    f.store.rollback(BASE_HASH, DEFAULT_DOMAIN).unwrap();
    f.store.delete_adapter(&id("c")).unwrap();
    assert_eq!(f.store.adapters().unwrap().len(), 1);
    assert!(f.home.adapters().join(".trash").read_dir().unwrap().next().is_none());
}

#[test]
fn an_adapter_that_a_job_continues_from_is_not_deleted() {
    let f = fixture();
    f.train("a");
    f.add(1);
    let job = f.measured_job(&job());
    f.store.set_job_parent(job.id, Some(&id("a"))).unwrap();
    f.store.unload(&id("a")).unwrap();
    let error = f.store.delete_adapter(&id("a")).unwrap_err().to_string();
    assert!(error.contains(&format!("start of job {}", job.id)), "{error}");
    assert_eq!(f.succeed(&job).parent, Some(id("a")));
}

#[test]
fn an_adapter_is_kept_as_long_as_a_job_that_continues_from_it_may_run() {
    let f = fixture();
    f.train("a");
    f.store.unload(&id("a")).unwrap();
    f.add(1);
    let job = f.store.enqueue_job(&job()).unwrap().id;
    f.store.set_job_parent(job, Some(&id("a"))).unwrap();
    let kept = || matches!(f.store.delete_adapter(&id("a")), Err(StoreError::AdapterInUse { .. }));
    assert!(kept(), "queued");
    f.store.claim_next().unwrap();
    assert!(kept(), "running");
    f.store.set_evaluating(job).unwrap();
    assert!(kept(), "evaluating");
    f.store.finish_failed(job, "x").unwrap();
    f.store.delete_adapter(&id("a")).unwrap();
}

#[test]
fn an_adapter_without_a_file_is_not_promoted() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    let adapter = f.new_adapter(&job);
    std::fs::remove_file(adapter.dir.join("training.json")).unwrap();
    let promotion = Promotion::for_tests();
    let error = f.store.finish_succeeded(job.id, &adapter, &metrics(), &promotion).unwrap_err();
    assert!(error.to_string().contains("has no training.json"), "{error}");
    assert_eq!(f.store.job(job.id).unwrap().state, JobState::Evaluating);
}

#[test]
fn a_job_that_was_not_measured_publishes_nothing() {
    let f = fixture();
    f.add(1);
    f.store.enqueue_job(&job()).unwrap();
    let running = f.store.claim_next().unwrap().unwrap();
    let adapter = f.new_adapter(&running);
    let promotion = Promotion::for_tests();
    let done = f.store.finish_succeeded(running.id, &adapter, &metrics(), &promotion);
    assert!(matches!(done, Err(StoreError::IllegalTransition { .. })));
    assert!(!f.home.adapter(&adapter.id).exists() && f.store.adapters().unwrap().is_empty());
}

#[test]
fn a_worker_may_have_put_the_files_in_their_place() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    let dir = f.home.adapter(&job.name);
    write_adapter(&dir);
    let adapter = NewAdapter { dir: dir.clone(), ..f.new_adapter(&job) };
    let promotion = Promotion::for_tests();
    f.store.finish_succeeded(job.id, &adapter, &metrics(), &promotion).unwrap();
    assert!(dir.join("training.json").is_file());
}

#[test]
fn usage_is_counted_from_answers() {
    let f = fixture();
    f.train("a");
    let answer = |adapters: &[&str]| NewUsage {
        base: "tiny".to_owned(),
        adapters: adapters.iter().map(|a| UsedAdapter { id: id(a), weight: 1.0 }).collect(),
        prompt_tokens: 10,
        new_tokens: 5,
        prefill_ms: 2.0,
        decode_ms: 50.0,
        finish_reason: "stop".to_owned(),
    };
    f.store.add_usage(&answer(&[])).unwrap();
    f.store.add_usage(&answer(&["a"])).unwrap();
    let marked = f.store.add_usage(&answer(&["a", "b"])).unwrap();
    let feedback = f.store.add_feedback(&mark(Mark::Good, 1)).unwrap().id;
    f.store.mark_usage(marked, feedback).unwrap();
    assert_eq!(f.store.adapter(&id("a")).unwrap().used_in, 2);
    let usage = f.store.usage().unwrap();
    let line = |n: usize| (usage[n].adapter.as_deref(), usage[n].answers, usage[n].good);
    assert_eq!([line(0), line(1), line(2)], [(None, 1, 0), (Some("a"), 2, 1), (Some("b"), 1, 1)]);
    assert_eq!(usage[1].tokens_per_second, Some(100.0));
    f.store.undo_feedback(feedback).unwrap();
    assert_eq!(f.store.usage().unwrap()[1].good, 0);
}
