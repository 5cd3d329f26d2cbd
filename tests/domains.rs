//! Domains: routing of questions, mixtures, and what the program says about them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

#[path = "domains/routing.rs"]
mod routing;
mod support;

use candle_core::{DType, Device, Tensor};
use routing::{Row, rows};
use serde_json::json;
use shammah::lora::{self, Factors, LoraConfig};
use shammah::models::{self, LoadedModel, ModelSource, Module, Site};
use support::Program;

fn builtin() -> LoadedModel {
    models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap()
}

/// Puts an adapter into the database and onto the disk, live in its domain.
fn put_adapter(program: &Program, id: &str, domain: &str, value: f32, model: &LoadedModel) {
    put(program, id, domain, value, model, false);
}

fn put(program: &Program, id: &str, domain: &str, value: f32, model: &LoadedModel, dora: bool) {
    let folder = program.home().join("adapters").join(id);
    fs_err::create_dir_all(&folder).unwrap();
    let config = model.decoder.config();
    let filled = |shape| Tensor::full(value, shape, &Device::Cpu).unwrap().to_dtype(DType::F32);
    let width = config.num_attention_heads * config.head_dim;
    let a = filled((2, config.hidden_size)).unwrap();
    let b = filled((width, 2)).unwrap();
    let magnitude = dora.then(|| Tensor::ones(width, DType::F32, &Device::Cpu).unwrap());
    let site = Site { layer: 0, module: Module::QProj };
    let factors = Factors { a, b, magnitude, alpha: 2.0 };
    let lora = LoraConfig {
        rank: 2,
        alpha: 2.0,
        rslora: false,
        dora,
        target_modules: vec!["q_proj".to_owned()],
    };
    lora::save(&folder, &lora, 0.0, "builtin", &[(site, factors)].into()).unwrap();
    let record = json!({"base_hash": model.base_hash}).to_string();
    fs_err::write(folder.join("training.json"), record).unwrap();
    let database = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    database
        .execute(
            "INSERT INTO adapters (id, domain, base, base_hash, rank, target_modules, examples, gate, created_at,
                                   bytes, live)
             VALUES (?1, ?2, 'builtin', ?3, 2, '[\"q_proj\"]', 10, '{}', 0, 3, 1)",
            (id, domain, &model.base_hash),
        )
        .unwrap();
}

/// Marks of all three domains as a file to import.
fn file_of_marks(program: &Program) -> String {
    let line = |row: Row| {
        json!({"messages": [{"role": "user", "content": row.text}], "response": "r", "mark": "good", "domain": row.domain})
            .to_string()
    };
    let lines: Vec<String> = rows().into_iter().filter(|row| row.is_mark).map(line).collect();
    program.write("marks.jsonl", &lines.join("\n"))
}

#[test]
fn ask_answers_with_the_adapters_of_the_routed_domain() {
    let (program, model) = (Program::new(), builtin());
    let file = file_of_marks(&program);
    program.run(&["feedback", "import", &file]).done();
    put_adapter(&program, "for-git", "git", 1e-3, &model);
    put_adapter(&program, "style", "cooking", 1e-3, &model);
    let ask = |args: &[&str]| {
        let mut all = vec!["ask", "--json", "--max-tokens", "2"];
        all.extend(args);
        program.run(&all).done().json()
    };
    let git = ask(&["How do I squash my last commits before I push the branch?"]);
    assert_eq!(git["domain"], "git", "{git}");
    assert_eq!(git["adapters"], json!(["for-git"]));
    assert!(git["similarity"].as_f64().unwrap() > 0.2, "{git}");
    let pinned = ask(&["--domain", "rust", "How do I squash my commits?"]);
    assert_eq!((&pinned["domain"], &pinned["adapters"]), (&json!("rust"), &json!([])));
    assert_eq!(pinned["similarity"], json!(null));
    let off = ask(&["--set", "generation.routing=false", "How do I push a branch?"]);
    assert_eq!(off["domain"], "general");
    // A configured mixture: the live adapter and another domain's.
    let mixture = "domains.git.adapters=[\"live:0.7\", \"style:0.5\"]";
    let mixed = ask(&["--set", mixture, "--domain", "git", "How do I push?"]);
    assert_eq!(mixed["adapters"], json!(["for-git:0.7", "style:0.5"]));
    // One that cannot be mixed: the live one answers alone, and it is said.
    put(&program, "scaled", "scaling", 1e-3, &model, true);
    let mixture = "domains.git.adapters=[\"live:0.7\", \"scaled:0.5\"]";
    let ask_git = ["ask", "--json", "--max-tokens", "2", "--set", mixture, "--domain", "git", "x"];
    let run = program.run(&ask_git);
    assert!(run.stderr.contains("without its configured mixture"), "{run:?}");
    assert_eq!((run.code, &run.json()["adapters"]), (0, &json!(["for-git"])));
    let message = program.run(&["ask", "--domain", "gti", "How do I push?"]).failed(2);
    assert!(message.contains("cooking, general, git, rust"), "{message}");
    let refused = program.run(&["--set", "domains.git.adapters=[\"x:99\"]", "config", "check"]);
    assert_eq!(refused.code, 2, "{refused:?}");
}

#[test]
fn a_console_routes_shows_the_domain_and_pins_one() {
    let (program, model) = (Program::new(), builtin());
    let file = file_of_marks(&program);
    program.run(&["feedback", "import", &file]).done();
    put_adapter(&program, "for-git", "git", 1e-3, &model);
    put_adapter(&program, "style", "cooking", 1e-3, &model);
    let script = "How do I squash my last commits before I push the branch?\n/good\n/domain cooking\n\
                  What is on the branch?\n/good\n/domain\n/domain auto\n/adapters load for-git:0.5 style:0.5\n\
                  /set max_tokens 2\nhello\n/adapters unload\n/marks 2\n/adapters compare base style:0.5 hello\n/stats\n";
    let quiet = ["chat", "--set", "lora.training.auto_train=false"];
    let run = program.run_with_input(&quiet, script);
    let said = &run.stdout;
    assert!(said.contains("[git 0."), "{said}");
    assert!(
        said.contains("Domain cooking is pinned: it answers, and marks go to it (15 marks)."),
        "{said}"
    );
    assert!(said.contains("* cooking · 16 marks · style\n"), "{said}");
    assert!(said.contains("  git · 16 marks · for-git\n"), "{said}");
    assert!(said.contains("for-git:0.5, style:0.5 answer in this session"), "{said}");
    assert!(said.contains("What is live answers again."), "{said}");
    assert!(said.contains("#47 good · weight 1 · cooking · new\n   What is on the branch?\n#46 good · weight 1 · git"), "{said}");
    assert!(said.contains("with style:0.5:"), "{said}");
    assert!(said.contains("WEEK"), "{said}");
    let listed = program.run(&["feedback", "list", "--json"]).done().json_lines();
    let last: Vec<_> = listed.iter().take(2).map(|row| &row["domain"]).collect();
    assert_eq!(last, ["cooking", "git"], "marks go to the domain that answered");
    assert_eq!(listed[1]["adapter"], "for-git");
}

#[test]
fn chats_of_others_are_imported_once_edited_and_exported() {
    let program = Program::new();
    let chats = "{\"messages\":[{\"role\":\"user\",\"content\":\"q1\"},{\"role\":\"assistant\",\"content\":\"a1\"}]}\n\
                 {\"conversations\":[{\"from\":\"human\",\"value\":\"q2\"},{\"from\":\"gpt\",\"value\":\"a2\"}],\"weight\":2}\n\
                 {\"messages\":[{\"role\":\"user\",\"content\":\"q1\"}],\"response\":\"bad\",\"mark\":\"fix\",\"fix\":\"a1\"}\n";
    let file = program.write("chats.jsonl", chats);
    let first = program.run(&["feedback", "import", &file]).done().stdout;
    assert!(first.contains("stored 3 marks"), "what a file repeats is stored: {first}");
    assert!(
        first.contains("1 of its lines are chats in the form of OpenAI: taken as good"),
        "{first}"
    );
    assert!(first.contains("1 of its lines are chats in the form of ShareGPT"), "{first}");
    assert!(!first.contains("were there already"), "{first}");
    let again = program.run(&["feedback", "import", &file, "--json"]).done().json();
    assert_eq!(
        (&again["imported"], &again["merged"], &again["raised"]),
        (&json!(0), &json!(3), &json!(0))
    );
    let rows = program.run(&["feedback", "list", "--json"]).done().json_lines();
    let weights: Vec<_> = rows.iter().map(|row| row["weight"].as_f64().unwrap()).collect();
    assert_eq!(weights, [3.0, 2.0, 1.0], "the weights stay");
    let heavier = program.write("heavier.jsonl", &chats.replace("\"weight\":2", "\"weight\":4"));
    let raised = program.run(&["feedback", "import", &heavier]).done().stdout;
    assert!(raised.contains("3 of its lines were there already and are not stored twice; 1 of those got a higher weight"), "{raised}");

    let broken = program.write(
        "broken.jsonl",
        &format!("{}\n{{\"conversations\":[]}}\n", chats.lines().next().unwrap()),
    );
    let message = program.run(&["feedback", "import", &broken]).failed(1);
    assert!(message.contains("broken.jsonl:2: the chat must end with an answer"), "{message}");

    let edit = [
        "feedback",
        "edit",
        "2",
        "--fix",
        "a better a2",
        "--mark",
        "critical",
        "--note",
        "be exact",
        "--domain",
        "rust",
    ];
    let said = program.run(&edit).done().stdout;
    assert_eq!(said, "mark 2: critical, weight 10 (was 4), domain rust, new\n");
    let openai =
        program.run(&["feedback", "export", "-", "--format", "openai"]).done().json_lines();
    assert_eq!(openai[1]["messages"][1], json!({"role": "assistant", "content": "a better a2"}));
    let sharegpt = program
        .run(&["feedback", "export", "-", "--format", "sharegpt", "--domain", "rust"])
        .done()
        .json_lines();
    assert_eq!(
        sharegpt,
        [
            json!({"conversations": [{"from": "human", "value": "q2"}, {"from": "gpt", "value": "a better a2"}]})
        ]
    );

    for id in ["3", "2", "1"] {
        let taken = format!("mark {id} is taken back\n");
        assert_eq!(program.run(&["feedback", "undo"]).done().stdout, taken);
    }
    assert!(program.run(&["feedback", "undo"]).failed(1).contains("no marks yet"));
    assert_eq!(
        program.run(&["feedback", "edit", "2"]).code,
        2,
        "an edit without a change is no edit"
    );
}

#[test]
fn two_adapters_are_measured_on_what_each_was_taught() {
    let (program, model) = (Program::new(), builtin());
    let file = file_of_marks(&program);
    program.run(&["feedback", "import", &file]).done();
    put_adapter(&program, "one", "git", 3e-2, &model);
    put_adapter(&program, "two", "rust", -3e-2, &model);
    // What `one` was taught, as its job left it: the first git marks.
    let database = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    database
        .execute_batch(
            "INSERT INTO jobs (id, name, domain, start, state, examples, params, adapter, created_at)
             VALUES (1, 'one', 'git', 'fresh', 'succeeded', 3, '{}', 'one', 0);
             INSERT INTO job_feedback SELECT 1, id, 'new', response, 1.0 FROM feedback WHERE domain = 'git' LIMIT 3;",
        )
        .unwrap();
    let report = program.run(&["adapters", "compare", "one", "two", "--json"]).done().json();
    // The factors are constants: one is minus the other twice over, so their products are the same.
    assert!((report["overlap"].as_f64().unwrap() - 1.0).abs() < 1e-3, "{report}");
    let losses = &report["losses"][0];
    assert_eq!((&losses["of"], &losses["examples"]), (&json!("one"), &json!(3)));
    for side in ["base", "a", "b", "both"] {
        assert!(losses[side].as_f64().unwrap() > 0.0, "{report}");
    }
    assert_eq!(losses["a"], losses["b"], "the same update gives the same loss");
    assert_ne!(losses["a"], losses["base"]);
    let text = program.run(&[
        "adapters",
        "compare",
        "one",
        "base",
        "--prompt",
        "hello",
        "--set",
        "generation.max_tokens=3",
    ]);
    let text = text.done().stdout;
    assert!(text.contains("on the 3 examples that one was taught"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains("base:\n"), "{text}");
    let twice = program.run(&["adapters", "compare", "one", "one"]).failed(2);
    assert!(twice.contains("one is given twice"), "{twice}");
}

#[test]
fn statistics_count_answers_marks_and_trainings_by_adapter_and_week() {
    let (program, model) = (Program::new(), builtin());
    assert!(program.run(&["stats"]).done().stdout.starts_with("Nothing was asked"));
    put_adapter(&program, "one", "general", 1e-3, &model);
    let ask = ["-q", "ask", "hello", "--max-tokens", "2"];
    program.run(&ask).done();
    program.run(&[&ask[..], &["--no-adapter"]].concat()).done();
    let database = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    let mark = "INSERT INTO feedback (messages, response, mark, weight, domain, adapter, base, created_at)
                VALUES ('[{\"role\":\"user\",\"content\":\"q\"}]', 'a', ?1, ?2, 'general', ?3, 'x', ?4)";
    let week = 1_763_942_400_000_i64;
    for (kind, weight, adapter) in
        [("good", 1.0, Some("one")), ("medium", 3.0, Some("one")), ("critical", 10.0, None)]
    {
        database.execute(mark, (kind, weight, adapter, week)).unwrap();
    }
    let stats = program.run(&["stats", "--json"]).done().json();
    let of = |name: &str| {
        let all = stats["adapters"].as_array().unwrap();
        all.iter().find(|one| one["adapter"] == name).unwrap().clone()
    };
    let (one, base) = (of("one"), of("base"));
    assert_eq!(
        (&one["answers"], &one["new_tokens"], &base["answers"]),
        (&json!(1), &json!(2), &json!(1))
    );
    assert_eq!((&one["good_share"], &one["weighted_share"]), (&json!(0.5), &json!(0.25)));
    assert_eq!(one["weighted_share_before"], json!(0.0), "the base had a critical mark");
    assert!(one["latency_ms"].as_f64().unwrap() > 0.0);
    let csv = program.path("stats.csv");
    program.run(&["stats", "--csv", csv.to_str().unwrap()]).done();
    let csv = fs_err::read_to_string(csv).unwrap();
    assert!(csv.starts_with("week,adapter,answers,"), "{csv}");
    assert!(csv.contains("\n2025-W48,one,0,0,0,0,0,1,1,0,0,1,4\n"), "{csv}");
    let text = program.run(&["stats"]).done().stdout;
    assert!(text.contains("one ") && text.contains("25 % ██▌"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}
