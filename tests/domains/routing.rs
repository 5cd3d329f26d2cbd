//! Which questions go to which domain.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use candle_core::{Device, Tensor};
use shammah::domain::{DEFAULT_DOMAIN, Route, RoutedMark, Routes};
use shammah::engine::Router;
use shammah::eval;
use shammah::lora::AdapterSet;

use super::builtin;

/// One line of tests/fixtures/routing/questions.tsv: three domains with 15 marks and 20 unseen questions each, and 20
/// questions of none (`-`).
pub struct Row {
    pub domain: &'static str,
    pub is_mark: bool,
    pub text: &'static str,
}

pub fn rows() -> Vec<Row> {
    read(FILES[0])
}

/// The settings were chosen on the first two and on one domain of many subjects; the third is beside them.
const FILES: [&str; 3] = [
    include_str!("../fixtures/routing/questions.tsv"),
    include_str!("../fixtures/routing/second.tsv"),
    include_str!("../fixtures/routing/third.tsv"),
];

fn read(text: &'static str) -> Vec<Row> {
    let row = |line: &'static str| {
        let mut parts = line.split('\t');
        let mut part = || parts.next().expect("three columns");
        Row { domain: part(), is_mark: part() == "mark", text: part() }
    };
    text.lines().map(row).collect()
}

fn routes(marks: Vec<RoutedMark>) -> Routes {
    let margin = shammah::config::Config::defaults().unwrap().generation.routing_margin;
    Routes { margin, general: eval::routing_prompts(), marks }
}

fn marks(rows: &[Row]) -> Vec<RoutedMark> {
    let mark = |row: &Row| RoutedMark { domain: row.domain.into(), question: row.text.into() };
    rows.iter().filter(|row| row.is_mark).map(mark).collect()
}

/// Questions of the domain that are asked and go there, of none that are asked and stay, and of other subjects that stay.
#[derive(Debug, Default, PartialEq)]
struct Count {
    right: (u32, u32),
    stayed: (u32, u32),
    others: (u32, u32),
}

fn count(rows: &[Row]) -> Count {
    let model = builtin();
    let router = Router::new(&model, &routes(marks(rows)), None).unwrap().unwrap();
    let mut count = Count::default();
    for row in rows.iter().filter(|row| !row.is_mark) {
        let Route { domain, similarity } = router.route(&model, row.text).unwrap();
        assert!((-1.0..=1.0).contains(&similarity.unwrap()));
        let stays = domain == DEFAULT_DOMAIN;
        let (of, is_right) = match row.domain {
            "-" => (&mut count.stayed, stays),
            "other" => (&mut count.others, stays),
            own => (&mut count.right, domain == own),
        };
        of.0 += u32::from(is_right);
        of.1 += 1;
    }
    println!("{count:?}");
    count
}

/// One domain of these subjects, the questions that are asked of them marked too if `all`; what is asked of the others.
fn joined(subjects: &[&str], all: bool) -> Vec<Row> {
    let every = FILES.into_iter().flat_map(read);
    let row = |row: Row| match (row.domain, subjects.contains(&row.domain)) {
        (_, true) => Some(Row { domain: "joined", is_mark: row.is_mark || all, ..row }),
        ("-", _) => Some(row),
        _ if row.is_mark => None,
        _ => Some(Row { domain: "other", ..row }),
    };
    every.filter_map(row).collect()
}

#[test]
fn unseen_questions_go_to_their_domain_and_those_of_none_to_the_base() {
    let Count { right, stayed, .. } = count(&rows());
    assert!(right.1 == 60 && right.0 * 100 >= 60 * 85, "{right:?}");
    assert_eq!(stayed, (20, 20));
}

#[test]
fn domains_of_other_sets_are_told_apart_too() {
    for (file, least) in [(FILES[1], (21, 9)), (FILES[2], (21, 14))] {
        let Count { right, stayed, .. } = count(&read(file));
        assert!(right.0 >= least.0 && right.1 == 30, "{right:?}");
        assert!(stayed.0 >= least.1, "{stayed:?}");
    }
}

#[test]
fn a_domain_with_many_marks_draws_no_questions_of_others() {
    let technical = ["docker", "git", "rust", "sql"];
    let many = joined(&technical, true);
    assert_eq!(marks(&many).len(), 120);
    let Count { stayed, others, .. } = count(&many);
    assert!(stayed.0 >= 47 && stayed.1 == 50, "{stayed:?}");
    assert!(others.0 * 100 >= others.1 * 80, "{others:?}");
    let Count { right, stayed, .. } = count(&joined(&technical, false));
    assert!(right.0 * 100 >= right.1 * 70, "{right:?}");
    assert!(stayed.0 >= 47, "{stayed:?}");
}

#[test]
fn a_domain_with_few_marks_is_found_and_draws_nothing() {
    let mut seen = BTreeMap::<&str, u32>::new();
    let few: Vec<Row> = rows()
        .into_iter()
        .filter(|row| {
            let marks = seen.entry(row.domain).or_default();
            *marks += u32::from(row.is_mark);
            !row.is_mark || *marks <= 5
        })
        .collect();
    let Count { right, stayed, .. } = count(&few);
    assert!(right.0 * 100 >= right.1 * 65, "{right:?}");
    assert!(stayed.0 >= 18, "{stayed:?}");
}

#[test]
fn everyday_prompts_are_none_of_the_questions_that_are_asked() {
    let general = eval::routing_prompts();
    assert!(general.iter().all(|text| !text.trim().is_empty()));
    let general: BTreeSet<String> = general.into_iter().map(|text| text.to_lowercase()).collect();
    for row in FILES.into_iter().flat_map(read) {
        assert!(!general.contains(&row.text.to_lowercase()), "{}", row.text);
    }
}

#[test]
fn the_same_question_marked_often_is_one() {
    let (model, all) = (builtin(), marks(&rows()));
    let mut often = all.clone();
    often.extend(all.iter().cloned());
    let once = Router::new(&model, &routes(all), None).unwrap().unwrap();
    let often = Router::new(&model, &routes(often), None).unwrap().unwrap();
    for row in rows().iter().filter(|row| !row.is_mark) {
        let route = |router: &Router| router.route(&model, row.text).unwrap();
        assert_eq!(route(&once), route(&often), "{}", row.text);
    }
}

#[test]
fn a_few_marks_make_no_domain_and_without_domains_nothing_is_routed() {
    let model = builtin();
    assert!(Router::new(&model, &routes(Vec::new()), None).unwrap().is_none());
    let few: Vec<RoutedMark> =
        marks(&rows()).into_iter().filter(|mark| mark.domain == "git").take(2).collect();
    assert!(Router::new(&model, &routes(few), None).unwrap().is_none());
}

#[test]
fn marks_of_the_default_domain_keep_questions_like_them() {
    let model = builtin();
    let mut all = marks(&rows());
    let question = "How do I rebase my feature branch onto the main branch?";
    let route = |marks: &[RoutedMark]| {
        let router = Router::new(&model, &routes(marks.to_vec()), None).unwrap().unwrap();
        router.route(&model, question).unwrap().domain
    };
    assert_eq!(route(&all), "git");
    for twist in ["", " please", " now"] {
        let question = format!("{question}{twist}");
        all.push(RoutedMark { domain: DEFAULT_DOMAIN.into(), question });
    }
    assert_eq!(route(&all), DEFAULT_DOMAIN);
}

#[test]
fn a_router_made_of_an_earlier_one_routes_the_same() {
    let (model, all) = (builtin(), marks(&rows()));
    let fewer = routes(all[..40].to_vec());
    let fresh = Router::new(&model, &fewer, None).unwrap().unwrap();
    let more = Router::new(&model, &routes(all), None).unwrap();
    let again = Router::new(&model, &fewer, more).unwrap().unwrap();
    for row in rows().iter().filter(|row| !row.is_mark) {
        let route = |router: &Router| router.route(&model, row.text).unwrap();
        assert_eq!(route(&fresh), route(&again), "{}", row.text);
    }
}

/// The share of reading a question that routing it costs; docs/ROUTING.md has the figures.
#[test]
#[ignore = "measures time: run it alone and in release"]
fn routing_beside_reading() {
    let model = builtin();
    let all = marks(&rows());
    let start = Instant::now();
    let router = Router::new(&model, &routes(all[1..].to_vec()), None).unwrap();
    println!("{} marks and the general prompts read: {:?}", all.len() - 1, start.elapsed());
    let start = Instant::now();
    let router = Router::new(&model, &routes(all), router).unwrap().unwrap();
    println!("with one mark more: {:?}", start.elapsed());
    let (mut routed, mut read, mut tokens) = (Vec::new(), Vec::new(), 0);
    for _ in 0..5 {
        for row in rows().iter().filter(|row| !row.is_mark) {
            let start = Instant::now();
            router.route(&model, row.text).unwrap();
            routed.push(start.elapsed());
            let text = format!("<|user|>\n{}\n<|assistant|>\n", row.text);
            let start = Instant::now();
            let ids = model.tokenizer.encode_text(&text).unwrap();
            let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let mut cache = model.decoder.new_cache(128).unwrap();
            model.decoder.hidden(&ids, Some(&mut cache), &AdapterSet::default()).unwrap();
            read.push(start.elapsed());
            tokens += ids.elem_count();
        }
    }
    routed.sort_unstable();
    read.sort_unstable();
    let (routed, read_each) = (routed[routed.len() / 2], read[read.len() / 2]);
    let share = 100.0 * routed.as_secs_f64() / read_each.as_secs_f64();
    println!(
        "median: {routed:?} of {read_each:?} for {} tokens: {share:.1} %",
        tokens / read.len()
    );
}
