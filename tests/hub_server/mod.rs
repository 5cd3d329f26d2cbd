//! A hub on this machine: answers as huggingface.co does, counts what it sends, and fails on request.
//!
//! Small files come from the hub itself, behind a redirect that stays on it; large ones from a store on another host, as
//! the real hub keeps them.

#![allow(dead_code, reason = "each test uses some of it")]

pub mod stage;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const REPO: &str = "acme/tiny";
pub const COMMIT: &str = "5f0c1e7a9b3d4c2e8f6a7b1d0e9c8f7a6b5d4c3e";
pub const TOKEN: &str = "hf_veryVerySecretToken";

/// A request and what it got.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Whether it came to the store of large files.
    pub at_store: bool,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    pub status: u16,
    /// Bytes of the body.
    pub sent: usize,
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The next answer of the store that sends more ends after so many bytes.
    pub cut_once: Option<usize>,
    /// After such a cut the store closes every connection.
    pub then_dead: bool,
    /// The store sends all bytes whatever the range.
    pub no_ranges: bool,
    /// The store takes its time.
    pub slow: bool,
    /// The store changes a byte.
    pub corrupt: bool,
    /// The description of the model has moved: to another port of this host, or to another host.
    pub moved: Option<&'static str>,
    /// Only this token may read.
    pub gated: Option<&'static str>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    log: Mutex<Vec<Request>>,
    store_port: u16,
}

pub struct Server {
    /// For `HF_ENDPOINT`.
    pub url: String,
    ports: [u16; 2],
    state: Arc<State>,
}

impl Server {
    /// Starts a hub that has the files of the built-in model.
    pub fn start() -> Self {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny");
        let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
        let read = |name: &str| (name.to_owned(), fs_err::read(folder.join(name)).unwrap());
        Self::with_files(names.iter().map(|name| read(name)).collect())
    }

    pub fn with_files(mut files: BTreeMap<String, Vec<u8>>) -> Self {
        files.insert("README.md".to_owned(), b"# of no use to a program".to_vec());
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let store = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports = [port(&hub), port(&store)];
        let state = Arc::new(State { files, store_port: ports[1], ..State::default() });
        for (listener, at_store) in [(hub, false), (store, true)] {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if state.log.lock().unwrap().last().is_some_and(|last| last.method == "END") {
                        return;
                    }
                    let state = Arc::clone(&state);
                    thread::spawn(move || state.serve(stream, at_store));
                }
            });
        }
        Self { url: format!("http://127.0.0.1:{}", ports[0]), ports, state }
    }

    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.faults.lock().unwrap());
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.log.lock().unwrap())
    }

    pub fn size(&self, name: &str) -> usize {
        self.state.files[name].len()
    }

    /// Stops listening: connections are refused from now on.
    pub fn stop(&self) {
        self.state.log.lock().unwrap().push(Request { method: "END".into(), ..Request::default() });
        for port in self.ports {
            let _ = TcpStream::connect(("127.0.0.1", port));
        }
        // The listeners close when their threads have seen that.
        while self.ports.iter().any(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()) {}
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The name that git has for a file.
pub fn git_hash(bytes: &[u8]) -> String {
    let hash = Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes);
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// What is answered: status, headers, body.
type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

impl State {
    fn serve(&self, stream: TcpStream, at_store: bool) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let mut words = first.split(' ').map(str::to_owned);
        let mut request = Request {
            at_store,
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            ..Request::default()
        };
        for line in lines.take_while(|line| !line.is_empty()) {
            let (key, value) = line.split_once(": ").unwrap();
            match key.to_ascii_lowercase().as_str() {
                "range" => request.range = Some(value.to_owned()),
                "authorization" => request.authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        let dead = at_store && {
            let faults = self.faults.lock().unwrap();
            faults.then_dead && faults.cut_once.is_none()
        };
        if !dead {
            let answer = if at_store { self.store(&request) } else { self.hub(&request) };
            self.send(&stream, &mut request, answer);
        }
        self.log.lock().unwrap().push(request);
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn send(&self, mut stream: &TcpStream, request: &mut Request, answer: Answer) {
        let (status, headers, mut body) = answer;
        let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        headers.iter().for_each(|(key, value)| head.push_str(&format!("{key}: {value}\r\n")));
        if request.method == "HEAD" {
            body.clear();
        }
        let mut faults = self.faults.lock().unwrap();
        if let Some(limit) = faults.cut_once.filter(|&limit| request.at_store && limit < body.len())
        {
            body.truncate(limit);
            faults.cut_once = None;
        }
        let slow = faults.slow && request.at_store;
        drop(faults);
        (request.status, request.sent) = (status, body.len());
        let _ = stream.write_all(format!("{head}\r\n").as_bytes());
        for piece in body.chunks(64 << 10) {
            if slow {
                thread::sleep(Duration::from_millis(50));
            }
            let _ = stream.write_all(piece);
        }
    }

    fn hub(&self, request: &Request) -> Answer {
        let refuse = |status, code: &str| (status, vec![("X-Error-Code", code.to_owned())], vec![]);
        let resolve = format!("/{REPO}/resolve/");
        let cached = format!("/api/resolve-cache/models/{REPO}/{COMMIT}/");
        let api = format!("/api/models/{REPO}/revision/");
        if let Some(revision) = request.path.strip_prefix(&api) {
            let (port, path) = (self.store_port, &request.path);
            if let Some(host) = self.faults.lock().unwrap().moved {
                return (307, vec![("Location", format!("http://{host}:{port}{path}"))], vec![]);
            }
            return match revision {
                "main" | "v1" | COMMIT => (200, vec![], self.description()),
                _ => refuse(404, "RevisionNotFound"),
            };
        }
        // The hub describes gated models to everybody.
        let expected = self.faults.lock().unwrap().gated;
        if let Some(token) = expected {
            match &request.authorization {
                None => return refuse(401, "GatedRepo"),
                Some(sent) if *sent != format!("Bearer {token}") => {
                    return refuse(403, "GatedRepo");
                }
                Some(_) => {}
            }
        }
        if let Some(name) = request.path.strip_prefix(&cached) {
            return self.part(request, name, self.headers(name), false);
        }
        let Some((revision, name)) =
            request.path.strip_prefix(&resolve).and_then(|path| path.split_once('/'))
        else {
            return refuse(404, "RepoNotFound");
        };
        assert_eq!(revision, COMMIT, "all files are of the commit that the description named");
        if !self.files.contains_key(name) {
            return refuse(404, "EntryNotFound");
        }
        let mut headers = self.headers(name);
        let (status, location) = if large(name) {
            let port = self.store_port;
            (302, format!("http://localhost:{port}/{name}?Signature=signed"))
        } else {
            (307, format!("{cached}{name}"))
        };
        headers.push(("Location", location));
        (status, headers, b"redirect".to_vec())
    }

    fn description(&self) -> Vec<u8> {
        let files = self.files.keys().map(|name| serde_json::json!({"rfilename": name}));
        let files: Vec<_> = files.collect();
        serde_json::to_vec(&serde_json::json!({"id": REPO, "sha": COMMIT, "siblings": files}))
            .unwrap()
    }

    fn headers(&self, name: &str) -> Vec<(&'static str, String)> {
        let bytes = &self.files[name];
        let mut headers = vec![("X-Repo-Commit", COMMIT.to_owned())];
        if large(name) {
            headers.push(("ETag", "\"of-the-redirect\"".to_owned()));
            headers.push(("X-Linked-ETag", format!("\"{}\"", sha256(bytes))));
            headers.push(("X-Linked-Size", bytes.len().to_string()));
        } else {
            headers.push(("ETag", format!("\"{}\"", git_hash(bytes))));
        }
        headers
    }

    fn store(&self, request: &Request) -> Answer {
        if request.path.starts_with("/api/") {
            return (200, vec![], self.description());
        }
        let path = request.path.trim_start_matches('/');
        let name = path.split('?').next().unwrap_or_default();
        self.part(request, name, vec![], true)
    }

    /// The bytes that the range asks for.
    fn part(
        &self,
        request: &Request,
        name: &str,
        mut headers: Vec<(&'static str, String)>,
        at_store: bool,
    ) -> Answer {
        let mut bytes = self.files[name].clone();
        let faults = self.faults.lock().unwrap().clone();
        if at_store && faults.corrupt {
            bytes[100] ^= 1;
        }
        let range = request.range.as_ref().and_then(|range| range.strip_prefix("bytes="));
        let Some((from, to)) =
            range.and_then(|r| r.split_once('-')).filter(|_| !(at_store && faults.no_ranges))
        else {
            return (200, headers, bytes);
        };
        let from = from.parse::<usize>().unwrap();
        if from >= bytes.len() {
            // Nothing but how long the file is.
            return (416, vec![("Content-Range", format!("bytes */{}", bytes.len()))], vec![]);
        }
        let last = bytes.len() - 1;
        let to = to.parse::<usize>().unwrap_or(last).min(last);
        headers.push(("Content-Range", format!("bytes {from}-{to}/{}", bytes.len())));
        (206, headers, bytes[from..=to].to_vec())
    }
}

fn large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf") || name == "tokenizer.json"
}
