//! serve, and chat with a server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::util::Place;

/// A server of the built-in stand-in.
struct Server {
    child: Child,
    url: String,
    log: BufReader<std::process::ChildStderr>,
}

impl Server {
    fn start(place: &Place, args: &[&str], key: Option<&str>) -> Server {
        let own = ["serve", "tiny=untrained", "--port", "0", "--state-dir", "states"];
        let mut command = place.command(&[&own[..], args].concat());
        command.env_remove("HAWFINCH_API_KEY").stdout(Stdio::null()).stderr(Stdio::piped());
        command.envs(key.map(|k| ("HAWFINCH_API_KEY", k)));
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("serves tiny at ") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
        }
        let url = line.trim().rsplit_once(' ').unwrap().1.to_owned();
        Server { child, url, log }
    }

    /// Ends it as a service manager does, with exit code 0; what it logged.
    #[cfg(unix)]
    fn stop(mut self) -> String {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
#[test]
fn a_chat_with_a_server_is_the_chat_with_its_model() {
    let place = Place::new();
    let server = Server::start(&place, &[], None);
    let talk = |args: &[&str], lines: &str| {
        let run = place
            .run_with(&[&["chat", "-n", "12", "--greedy", "--json"][..], args].concat(), lines.as_bytes());
        let lines = run.ok().json_lines();
        lines.into_iter().map(|r| r["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let url = server.url.clone();
    let connected = ["--connect", &url];
    let lines = "/system Be kind.\none\ntwo\n/regen\n/undo\nthree\n";
    let far = talk(&connected, lines);
    let near = talk(&["untrained", "--template", "completion"], lines);
    // The stand-in has no template of its own but plain text, there as here.
    assert_eq!((far.len(), near.len()), (4, 4));
    assert_eq!(far[0], near[0]);
    assert_eq!(far[1], far[2], "greedy: the same reply once more");
    let stats = place.run_with(&[&["chat", "tiny", "--stats", "-n", "5"][..], &connected].concat(), b"hi\n");
    assert!(stats.ok().err.contains("were known"));
    let saved = place.run_with(
        &[&["chat", "-n", "5"][..], &connected].concat(),
        b"hello\n/save talk.json\n/fork\n/history\n",
    );
    assert!(saved.ok().text().contains("user: hello"));
    let loaded =
        place.run_with(&[&["chat", "-n", "5"][..], &connected].concat(), b"/load talk.json\n/history\n");
    assert!(loaded.ok().text().contains("user: hello"));
    place.run(&[&["chat", "nothing"][..], &connected].concat()).fails(1, &["no model `nothing`", "tiny"]);
    let log = server.stop();
    assert!(log.contains("POST /v1/chat/completions 200"), "{log}");
    assert!(!log.contains("hello") && !log.contains("panicked"), "{log}");
    place.run(&[&["chat"][..], &connected].concat()).fails(1, &["cannot be reached"]);
}

#[cfg(unix)]
#[test]
fn keys_and_texts_in_the_log() {
    let place = Place::new();
    let server = Server::start(&place, &["--log-texts"], Some("the-key"));
    let address: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let ask = |key: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let body = r#"{"model":"tiny","prompt":"a text to find","max_tokens":2}"#;
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
        );
        let rest = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all((head + &rest).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer[9..12].to_owned()
    };
    assert_eq!((ask("the-key").as_str(), ask("another").as_str()), ("200", "401"));
    place.run(&["chat", "--connect", &server.url]).fails(1, &["401", "HAWFINCH_API_KEY"]);
    assert!(server.stop().contains("a text to find"));
}

#[test]
fn what_cannot_be_served_is_said() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    place.run(&["serve", "untrained", "--port", &port, "--no-state-dir"]).fails(1, &["is in use", "--port"]);
    place.run(&["serve", "nothing-there", "--port", "0", "--no-state-dir"]).fails(1, &["nothing-there"]);
    let serve = |args: &[&str]| {
        place.run(&[&["serve", "untrained", "--port", "0", "--no-state-dir"][..], args].concat())
    };
    place.write("empty", b"\n# no key\n");
    serve(&["--api-key", "empty"]).fails(2, &["holds no key"]);
    serve(&["--api-key", "absent"]).fails(1, &["absent"]);
    serve(&["--cors", "example.org"]).fails(2, &["--cors", "https://"]);
    serve(&["--adapter", "x"]).fails(2, &["NAME=FILE"]);
    serve(&["--adapter", "other+x=y"]).fails(2, &["no model called `other`"]);
    serve(&["--adapter", "x=absent.pth"]).fails(1, &["absent.pth"]);
    serve(&["--tls-cert", "empty", "--tls-key", "empty"]).fails(1, &["TLS", "certificate"]);
    serve(&["--state-memory", "0"]).fails(1, &["--state-memory"]);
    if cfg!(not(feature = "redis")) {
        serve(&["--state-store", "redis://127.0.0.1"]).fails(2, &["--features redis"]);
    }
    place.run(&["serve", "untrained", "untrained", "--port", "0", "--no-state-dir"]).fails(1, &["already"]);
    place.run(&["chat", "--connect", "example.org"]).fails(2, &["--connect", "http://"]);
}
