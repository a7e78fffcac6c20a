//! What operators use: the dashboard, the alerts, and Prometheus itself. `make prometheus` runs all of these tests and
//! needs Debian's package prometheus.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Server, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const TOKEN: &str = "an-admin-token-of-a-test";
const KEY: &str = "a-write-key-of-a-test";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn deploy(name: &str) -> PathBuf {
    repository().join("deploy").join(name)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no text {name} in {value}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

/// The metrics in the table of docs/metrics.md, and their types.
fn documented() -> Vec<(String, String)> {
    let docs = read("docs/metrics.md");
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let rows = rows.map(|(name, rest)| (name.to_owned(), rest.split(" |").next().unwrap().to_owned()));
    let listed: Vec<_> = rows.collect();
    assert!(listed.len() > 30, "{listed:?}");
    listed
}

/// The metrics of this server that a query names.
fn metrics_of(query: &str) -> BTreeSet<&str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("netwatch_") || word.starts_with("process_")).collect()
}

fn assert_documented(query: &str) {
    let documented = documented();
    let metrics = metrics_of(query);
    assert!(!metrics.is_empty() || query.contains("up{"), "no metric in {query}");
    for metric in metrics {
        let is = |(name, kind): &(String, String)| match kind.as_str() {
            "histogram" => {
                metric.strip_prefix(name.as_str()).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
            }
            _ => metric == name,
        };
        assert!(documented.iter().any(is), "{metric} in {query}");
    }
}

/// The panels of the dashboard.
fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana-dashboard.json")).unwrap();
    list(&dashboard["panels"]).to_vec()
}

/// The queries of the dashboard.
fn queries() -> Vec<String> {
    let targets = |panel: Value| panel["targets"].as_array().cloned().unwrap_or_default();
    panels().into_iter().flat_map(targets).map(|target| text(&target, "expr").to_owned()).collect()
}

/// The queries of docs/metrics.md.
fn recommended() -> Vec<String> {
    let docs = read("docs/metrics.md");
    let (_, rest) = docs.split_once("## What to watch").unwrap();
    let rows = rest.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| "));
    let queries: Vec<_> = rows.filter_map(|row| Some(row.split('`').nth(1)?.to_owned())).collect();
    assert!(queries.len() > 5, "{queries:?}");
    queries
}

fn alerts() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read("deploy/prometheus-alerts.yaml")).unwrap();
    list(&file["groups"]).iter().flat_map(|group| list(&group["rules"])).cloned().collect()
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect()
}

#[test]
fn every_panel_of_the_dashboard_says_what_it_shows_and_queries_documented_metrics() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana-dashboard.json")).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    let variables: Vec<_> = list(&dashboard["templating"]["list"]).iter().map(|value| text(value, "name")).collect();
    assert_eq!(variables, ["datasource", "instance"]);
    let (mut ids, mut queried) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels() {
        let title = text(&panel, "title");
        assert!(!title.is_empty(), "{panel}");
        assert!(text(&panel, "description").ends_with('.'), "the description of {title}");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "the id of {title}");
        if text(&panel, "type") == "row" {
            continue;
        }
        assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{title}");
        let targets = list(&panel["targets"]);
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let query = text(target, "expr");
            assert!(query.contains("instance=~\"$instance\""), "{title}: {query}");
            assert_documented(query);
            queried.extend(metrics_of(query).into_iter().map(str::to_owned));
        }
    }
    for (name, _) in documented() {
        let is_shown = queried.iter().any(|query| query.starts_with(&name));
        assert!(is_shown || name == "process_virtual_memory_bytes", "no panel shows {name}");
    }
}

#[test]
fn every_alert_has_a_severity_a_section_of_the_documentation_documented_metrics_and_tests() {
    let operations = read("docs/operations.md");
    let anchors: BTreeSet<_> = operations.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect();
    let tests: Value = serde_saphyr::from_str(&read("deploy/prometheus-alerts.test.yaml")).unwrap();
    let checks: Vec<_> = list(&tests["tests"]).iter().flat_map(|test| list(&test["alert_rule_test"])).collect();
    for alert in alerts() {
        let name = text(&alert, "alert");
        assert!(["critical", "warning", "info"].contains(&text(&alert["labels"], "severity")), "{name}");
        let annotations = &alert["annotations"];
        assert!(!text(annotations, "summary").is_empty() && text(annotations, "description").ends_with('.'), "{name}");
        let section = text(annotations, "runbook").strip_prefix("docs/operations.md#").unwrap();
        assert!(anchors.contains(section), "{name}: {section}");
        assert_documented(text(&alert, "expr"));
        let fires = |check: &&&Value| check["alertname"] == name && !list_or_empty(&check["exp_alerts"]).is_empty();
        let is_silent = |check: &&&Value| check["alertname"] == name && list_or_empty(&check["exp_alerts"]).is_empty();
        assert!(checks.iter().any(|check| fires(&check)), "no test in which {name} fires");
        assert!(checks.iter().any(|check| is_silent(&check)), "no test in which {name} does not fire");
        assert!(operations.contains(&format!("`{name}`")), "docs/operations.md does not explain {name}");
    }
}

fn list_or_empty(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Forwards scrapes to the current server. Prometheus 2.42 always prefers OpenMetrics; without its `Accept`, the server
/// answers with text.
struct Relay {
    address: SocketAddr,
    server: Arc<Mutex<SocketAddr>>,
    /// The content types of all answers.
    content_types: Arc<Mutex<BTreeSet<String>>>,
}

impl Relay {
    fn start(server: SocketAddr, keeps_accept: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (server, content_types) = (Arc::new(Mutex::new(server)), Arc::default());
        let relay = Self { address, server: Arc::clone(&server), content_types: Arc::clone(&content_types) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, content_types) = (*server.lock().unwrap(), Arc::clone(&content_types));
                // An error is a scrape that fails, which Prometheus reports. The thread ends with its connection.
                thread::spawn(move || {
                    let answered = forward(&stream.unwrap(), server, keeps_accept);
                    content_types.lock().unwrap().extend(answered.ok());
                });
            }
        });
        relay
    }
}

/// Forwards one request. Returns the content type of the answer.
fn forward(mut client: &TcpStream, server: SocketAddr, keeps_accept: bool) -> io::Result<String> {
    let mut request = String::new();
    for line in BufReader::new(client).lines() {
        let line = line?;
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        match name.as_str() {
            "" => break,
            "accept" if !keeps_accept => {}
            "connection" => {}
            _ => request += &format!("{line}\r\n"),
        }
    }
    let mut server = TcpStream::connect(server)?;
    server.write_all(format!("{request}connection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    server.read_to_string(&mut answer)?;
    client.write_all(answer.as_bytes())?;
    let content_type = answer.lines().find_map(|line| line.strip_prefix("content-type: "));
    content_type.map(str::to_owned).ok_or(io::ErrorKind::InvalidData.into())
}

/// Debian's Prometheus with the alerts of `deploy/`.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl Prometheus {
    /// Starts Prometheus and waits until it is ready.
    fn start(jobs: &[(&str, SocketAddr)]) -> Self {
        // Retry if another process has opened the port in the meantime.
        wait_until("Prometheus starts", || {
            let mut prometheus = Self::spawn(jobs);
            let is_ready = wait_until("Prometheus is ready or exits", || match prometheus.child.try_wait().unwrap() {
                Some(_) => Some(false),
                None => prometheus.get("/-/ready").ok().filter(|(status, _)| *status == 200).map(|_| true),
            });
            is_ready.then_some(prometheus)
        })
    }

    fn spawn(jobs: &[(&str, SocketAddr)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let mut config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{}]\nscrape_configs:\n",
            deploy("prometheus-alerts.yaml").display()
        );
        for (job, target) in jobs {
            config += &format!(
                "  - job_name: {job}\n    authorization: {{ credentials_file: token }}\n    \
                 static_configs: [{{ targets: ['{target}'] }}]\n"
            );
        }
        fs::write(dir.path().join("prometheus.yaml"), config).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new("prometheus");
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data"]);
        command.arg(format!("--web.listen-address={address}"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, address, dir }
    }

    /// Status and body of an answer. HTTP/1.0, so that the answer has no chunks.
    fn get(&self, path: &str) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: test\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
    }

    fn api(&self, path: &str) -> Value {
        let (status, body) = self.get(&format!("/api/v1/{path}")).unwrap();
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert!(status == 200 && answer["status"] == "success", "{path}: {body}");
        answer["data"].clone()
    }

    /// The job, the labels and the value of each result. Panics if the query is not valid.
    fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let data = self.api(&format!("query?query={encoded}"));
        assert_eq!(data["resultType"], "vector", "{query}");
        let value = |result: &Value| result["value"][1].as_str().unwrap().parse().unwrap();
        list(&data["result"]).iter().map(|result| (result["metric"].clone(), value(result))).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
            self.child.wait().unwrap();
        }
        if thread::panicking() {
            eprintln!("Prometheus log:\n{}", fs::read_to_string(self.dir.path().join("log")).unwrap());
        }
    }
}

/// Sends one report that is accepted.
fn send_report(server: &Server) {
    server.post_with(&format!("x-write-key: {KEY}\r\n"), "{\"clientId\":\"a\"}").assert_ok();
}

/// Sends a request of each of several kinds that are refused.
fn send_refused(server: &Server) {
    let key = format!("x-write-key: {KEY}\r\n");
    server.post("{}").assert_problem(401, "key-missing");
    server.post_with(&key, "{").assert_problem(400, "not-json");
    server.post_with(&key, " ".repeat(5000)).assert_problem(413, "too-large");
    server.post_with(&format!("{key}content-type: image/png\r\n"), "{}").assert_problem(415, "unsupported-type");
    let origin = "origin: https://other.example\r\n";
    server.post_with(&format!("{key}{origin}"), "{}").assert_problem(403, "origin-not-allowed");
    server.get("/nowhere").assert_problem(404, "not-found");
    server.get("/metrics").assert_problem(401, "admin-token-missing");
}

#[test]
#[ignore = "needs prometheus: run `make prometheus`"]
fn prometheus_reads_both_formats_and_gets_data_for_every_query_of_the_dashboard_and_the_alerts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |flush_interval| {
        [
            ("ADMIN_TOKEN", TOKEN),
            ("WRITE_KEYS", KEY),
            ("MAX_BODY_BYTES", "4KiB"),
            ("CORS_ALLOW_ORIGINS", "https://app.example"),
            ("FLUSH_INTERVAL", flush_interval),
        ]
    };
    let data_dir = dir.path().join("reports");
    // All reports of the first server stay in its journal.
    let mut server = Server::start_in(&data_dir, &settings("1h"));
    let relays = [Relay::start(server.address, true), Relay::start(server.address, false)];
    let jobs = [("netwatch", relays[0].address), ("netwatch-text", relays[1].address)];
    let prometheus = Prometheus::start(&jobs);

    // A healthy server causes no alert. Alerts about the disk depend on the machine.
    let mut sent = 0;
    for (job, _) in jobs {
        wait_until("Prometheus sees reports arrive", || {
            send_report(&server);
            sent += 1;
            let rate = format!("rate(netwatch_reports_accepted_total{{job=\"{job}\"}}[5m]) > 0");
            (!prometheus.query(&rate).is_empty()).then_some(())
        });
    }
    let (by_disk, others): (Vec<_>, Vec<_>) =
        alerts().into_iter().partition(|alert| text(alert, "alert").starts_with("NetwatchDisk"));
    assert_eq!(by_disk.len(), 4);
    for alert in others {
        let result = prometheus.query(text(&alert, "expr"));
        assert!(result.is_empty(), "{}: {result:?}", text(&alert, "alert"));
    }

    server.signal(Signal::KILL);
    server.wait();
    server = Server::start_in(&data_dir, &settings("1s"));
    for relay in &relays {
        *relay.server.lock().unwrap() = server.address;
    }
    wait_until("the reports of the first server are recovered", || {
        let recovered = prometheus.query("netwatch_recovered_reports_total");
        (recovered.len() == 2 && recovered.iter().all(|(_, value)| *value == f64::from(sent))).then_some(())
    });

    let mut accepted = 0;
    for (_, target) in jobs {
        for query in queries() {
            // Grafana replaces the variables.
            let query = query.replace("$instance", &target.to_string()).replace("$__rate_interval", "5m");
            assert!(!query.contains('$'), "{query}");
            let result = wait_until(&format!("there is data for {query}"), || {
                send_report(&server);
                send_refused(&server);
                accepted += 1;
                Some(prometheus.query(&query)).filter(|result| result.iter().any(|(_, value)| value.is_finite()))
            });
            println!("{query}\n    {:?}", result.iter().map(|(_, value)| value).collect::<Vec<_>>());
        }
    }

    for query in recommended() {
        assert!(!prometheus.query(&query).is_empty(), "{query}");
    }
    for alert in alerts() {
        prometheus.query(text(&alert, "expr"));
    }
    let rules = wait_until("Prometheus has evaluated all rules", || {
        let groups = prometheus.api("rules");
        let rules: Vec<_> = list(&groups["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    assert_eq!(rules.len(), alerts().len());
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
    // Most requests were refused because of the clients.
    let refuses = alerts().into_iter().find(|alert| alert["alert"] == "NetwatchRefusesClients").unwrap();
    let reasons = prometheus.query(text(&refuses, "expr"));
    for (job, _) in jobs {
        let is = |(labels, _): &&(Value, f64)| labels["job"] == job && labels["reason"] == "key-missing";
        assert!(reasons.iter().any(|reason| is(&reason)), "{job}: {reasons:?}");
    }

    // Both formats give the same, exact counts.
    for exact in ["netwatch_reports_accepted_total", "netwatch_journal_group_reports_sum"] {
        wait_until("the last scrape has all reports", || {
            let counts = prometheus.query(exact);
            (counts.len() == 2 && counts.iter().all(|(_, value)| *value == f64::from(accepted))).then_some(())
        });
    }
    let content_types = relays.each_ref().map(|relay| relay.content_types.lock().unwrap().clone());
    let expected =
        ["application/openmetrics-text; version=1.0.0; charset=utf-8", "text/plain; version=0.0.4; charset=utf-8"];
    assert_eq!(content_types.map(Vec::from_iter), expected.map(|content_type| vec![content_type.to_owned()]));
    drop(prometheus);
    assert_eq!(server.stop().len(), (sent + accepted) as usize);
}

/// Runs promtool, and returns its output. Panics if it finds a fault.
fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(deploy(""));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[test]
#[ignore = "needs promtool: run `make prometheus`"]
fn promtool_accepts_the_alerts_their_tests_the_configuration_and_a_scrape() {
    let checked = promtool(&["check", "rules", "--lint-fatal", "prometheus-alerts.yaml"], "");
    assert!(checked.contains(&format!("{} rules found", alerts().len())), "{checked}");
    promtool(&["test", "rules", "prometheus-alerts.test.yaml"], "");
    // The token is in a file of the container.
    promtool(&["check", "config", "--syntax-only", "prometheus.yaml"], "");

    let server = Server::start(&[("ADMIN_TOKEN", TOKEN), ("WRITE_KEYS", KEY)]);
    send_report(&server);
    server.get("/metrics").assert_problem(401, "admin-token-missing");
    let request = format!("GET /metrics HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    let scrape = server.connect().ask(&request, b"");
    assert!(scrape.status == 200 && scrape.body.contains("netwatch_reports_accepted_total 1\n"), "{scrape:?}");
    assert_eq!(promtool(&["check", "metrics"], &scrape.body), "");
}
