//! `POST /login`, `POST /logout` and the session cookie.

mod common;

use std::fs;
use std::net::SocketAddr;

use common::{Answer, Client, Server, wait_until};
use rustix::process::Signal;

const TOKEN: &str = "an-admin-token-of-a-test";

fn start(settings: &[(&str, &str)]) -> Server {
    Server::start(&[settings, &[("ADMIN_TOKEN", TOKEN)]].concat())
}

fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\n\r\n");
    Client::try_connect(address).unwrap().ask_any([head.as_bytes(), body.as_bytes()].concat())
}

/// Logs in and returns the whole cookie.
fn log_in(address: SocketAddr, headers: &str) -> String {
    let answer = ask(address, "POST", "/login", headers, TOKEN);
    assert_eq!((answer.status, &*answer.body), (204, ""), "{answer:?}");
    answer.headers["set-cookie"].clone()
}

/// The header that sends a cookie back.
fn cookie_header(cookie: &str) -> String {
    format!("cookie: theme=dark; {}\r\n", cookie.split(';').next().unwrap())
}

#[test]
fn a_session_permits_reading_on_every_server_with_the_token_and_after_a_restart() {
    let (server, other) = (start(&[]), start(&[]));
    let cookie = log_in(server.address, "");
    assert!(cookie.ends_with("; Path=/; Max-Age=2592000; HttpOnly; SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains(TOKEN), "{cookie}");
    let restarted = {
        let data_dir = server.data_dir.clone();
        ask(server.address, "GET", "/api/v1/files", &cookie_header(&cookie), "").assert_status(200);
        server.stop();
        Server::start_in(&data_dir, &[("ADMIN_TOKEN", TOKEN)])
    };
    for address in [other.address, restarted.address] {
        for path in ["/api/v1/files", "/metrics"] {
            ask(address, "GET", path, &cookie_header(&cookie), "").assert_status(200);
        }
    }
    let stranger = Server::start(&[("ADMIN_TOKEN", "another-admin-token-of-a-test")]);
    ask(stranger.address, "GET", "/api/v1/files", &cookie_header(&cookie), "").assert_problem(401, "admin-token-wrong");
}

#[test]
fn a_session_ends_with_its_token_and_with_a_logout() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    fs::write(&file, TOKEN).unwrap();
    let server = Server::start(&[("ADMIN_TOKEN_FILE", file.to_str().unwrap())]);
    let cookie = cookie_header(&log_in(server.address, ""));
    let removal = ask(server.address, "POST", "/logout", &cookie, "");
    assert_eq!(removal.status, 204);
    assert!(removal.headers["set-cookie"].starts_with("netwatch_session=; Path=/; Max-Age=0; "), "{removal:?}");
    fs::write(&file, "another-admin-token-of-a-test").unwrap();
    server.signal(Signal::HUP);
    wait_until("the session has ended", || {
        let answer = ask(server.address, "GET", "/api/v1/files", &cookie, "");
        (answer.status == 401).then(|| answer.assert_problem(401, "admin-token-wrong"))
    });
}

#[test]
fn a_wrong_token_gets_no_session_and_is_counted_and_not_logged() {
    let mut server = start(&[("DEBUG", "on")]);
    let wrong = "a-wrong-token-of-a-test";
    for body in [wrong, &"x".repeat(2000)] {
        let answer = ask(server.address, "POST", "/login", "", body);
        // A browser must not ask for a password: the page does that.
        assert!(answer.headers["www-authenticate"].starts_with("Bearer"), "{answer:?}");
        assert!(!answer.headers.contains_key("set-cookie"));
        answer.assert_problem(401, "admin-token-wrong");
    }
    ask(server.address, "POST", "/login", "", " \n").assert_problem(401, "admin-token-missing");
    ask(server.address, "GET", "/login", "", "").assert_problem(405, "method-not-allowed");
    // White space around a token is no part of it.
    ask(server.address, "POST", "/login", "", &format!("{TOKEN}\n")).assert_status(204);
    let cookie = cookie_header(&log_in(server.address, ""));
    let metrics = ask(server.address, "GET", "/metrics", &cookie, "").body;
    for line in [
        "netwatch_admin_requests_refused_total 3",
        "netwatch_http_requests_total{route=\"/login\",code=\"401\"} 3",
        "netwatch_http_requests_total{route=\"/login\",code=\"204\"} 2",
        "netwatch_requests_refused_total{reason=\"admin-token-wrong\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    server.signal(Signal::TERM);
    server.wait();
    let log = server.log();
    assert!(!log.contains(wrong) && !log.contains(TOKEN) && !log.contains("netwatch_session"), "{log}");
}

#[test]
fn guesses_at_logins_cookies_and_tokens_share_one_limit() {
    let server = start(&[]);
    let wrong = [
        ("POST", "/login", ""),
        ("GET", "/api/v1/files", "cookie: netwatch_session=1.AAAA\r\n"),
        ("GET", "/metrics", "authorization: Bearer wrong\r\n"),
    ];
    let mut clients: Vec<_> = (0..24).map(|_| server.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let (method, path, headers) = wrong[n % 3];
        client.send(format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}content-length: 5\r\n\r\nwrong"));
    }
    let answers: Vec<_> = clients.iter_mut().map(Client::answer).collect();
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(401), count(429)), (16, 8), "{answers:?}");
}

#[test]
fn a_session_permits_reading_only_and_only_for_the_page_of_the_server() {
    let server = start(&[("WRITE_KEYS", "a-write-key-of-a-test")]);
    let cookie = cookie_header(&log_in(server.address, ""));
    ask(server.address, "POST", "/api/v1/reports", &cookie, "{}").assert_problem(401, "key-missing");
    for path in ["/api/v1/files", "/api/v1/stats", "/api/v1/live", "/metrics"] {
        ask(server.address, "POST", path, &cookie, "").assert_problem(405, "method-not-allowed");
        ask(server.address, "DELETE", path, &cookie, "").assert_problem(405, "method-not-allowed");
    }
    for (site, status) in [("same-origin", 200), ("none", 200), ("same-site", 401), ("cross-site", 401)] {
        let headers = format!("{cookie}sec-fetch-site: {site}\r\n");
        ask(server.address, "GET", "/api/v1/files", &headers, "").assert_status(status);
        for path in ["/login", "/logout"] {
            let answer = ask(server.address, "POST", path, &format!("sec-fetch-site: {site}\r\n"), TOKEN);
            assert_eq!(answer.status, if status == 200 { 204 } else { 403 }, "{path} {site}");
        }
    }
    // Reads are never shared with other origins, whatever CORS_ALLOW_ORIGINS is.
    let answer = ask(server.address, "GET", "/api/v1/files", &format!("{cookie}origin: https://app.example\r\n"), "");
    assert!(!answer.headers.keys().any(|name| name.starts_with("access-control-")), "{answer:?}");
    assert_eq!(answer.headers["cross-origin-resource-policy"], "same-origin");
    assert!(server.stop().is_empty());
}

#[test]
fn the_cookie_is_only_for_https_if_a_trusted_proxy_says_that_the_client_uses_it() {
    let https = "x-forwarded-proto: https\r\n";
    let server = start(&[("TRUSTED_PROXIES", "127.0.0.0/8")]);
    assert!(log_in(server.address, https).ends_with("; Secure"));
    for headers in
        ["", "x-forwarded-proto: http\r\n", "x-forwarded-proto: https, http\r\n", "forwarded: proto=https\r\n"]
    {
        assert!(log_in(server.address, headers).ends_with("SameSite=Strict"), "{headers}");
    }
    let server = start(&[("TRUSTED_PROXIES", "127.0.0.0/8"), ("FORWARDED_HEADER", "forwarded")]);
    assert!(log_in(server.address, "forwarded: for=192.0.2.1;proto=https\r\n").ends_with("; Secure"));
    assert!(log_in(start(&[]).address, https).ends_with("SameSite=Strict"), "the proxy is not trusted");
}

#[test]
fn without_a_token_there_are_no_sessions_and_without_need_no_cookie() {
    let server = Server::start(&[]);
    ask(server.address, "POST", "/login", "", TOKEN).assert_problem(403, "admin-closed");
    let server = Server::start(&[("ADMIN_LISTEN", "127.0.0.1:0"), ("ADMIN_TOKEN", "none")]);
    let line = server.wait_for_log("listening for readers", |_| true);
    let admin: SocketAddr = line["fields"]["address"].as_str().unwrap().parse().unwrap();
    let answer = ask(admin, "POST", "/login", "", TOKEN);
    assert_eq!((answer.status, answer.headers.contains_key("set-cookie")), (204, false));
    ask(admin, "GET", "/api/v1/files", "", "").assert_status(200);
    for path in ["/login", "/logout"] {
        ask(server.address, "POST", path, "", TOKEN).assert_problem(404, "not-found");
    }
}
