//! `netwatch-server stats` on files and journals.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

const LATENCY: [&str; 3] = [".hosts[].history[].ms", "--by", ".hosts[].name"];

/// Writes a report file whose first report is from this second of 2026-11-22T12:00.
fn write_file(dir: &Path, second: usize, lines: &[String]) {
    let name = format!("reports-20261122T1200{second:02}.000000000Z-{second:08x}.jsonl.zst");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(text.as_bytes()).unwrap();
    fs::write(dir.join(name), encoder.finish().unwrap()).unwrap();
}

/// The exit code, standard output and standard error of `stats` with these arguments.
fn stats(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_netwatch-server"))
        .env_clear()
        .arg("stats")
        .args(args)
        .arg("--dir")
        .arg(dir)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(dir: &Path, args: &[&str]) -> serde_json::Value {
    let (code, out, error) = stats(dir, &[args, &["--format", "json"]].concat());
    assert_eq!((code, error.as_str()), (0, ""));
    serde_json::from_str(&out).unwrap()
}

/// 20 files with 50 reports each.
fn archive() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in 0..20 {
        let lines: Vec<String> = (0..50)
            .map(|n| {
                let (host, other) = (n % 7, n % 3);
                format!(
                    r#"{{"n":{n},"hosts":[{{"name":"h{host}","history":[{{"ms":{n}}},{{"ms":{file}}}]}},{{"name":"x{other}","history":[{{"ms":1}}]}}]}}"#
                )
            })
            .collect();
        write_file(dir.path(), file, &lines);
    }
    dir
}

#[test]
fn statistics_cover_all_files_by_group_and_step() {
    let dir = archive();
    let all = json(dir.path(), &[&LATENCY[..], &["--step", "5s", "--top", "4"]].concat());
    assert_eq!(
        (&all["reports"], &all["reports_matched"], &all["limited"]),
        (&1_000.into(), &1_000.into(), &false.into())
    );
    let series = all["series"].as_array().unwrap();
    let counts: Vec<_> =
        series.iter().map(|one| (one["group"].as_str().unwrap(), one["count"].as_u64().unwrap())).collect();
    assert_eq!(counts, [("x0", 340), ("x1", 340), ("h0", 320), ("x2", 320)]);
    assert_eq!(all["other"]["count"], 3_000 - 1_320);
    let points = series[0]["points"].as_array().unwrap();
    let times: Vec<_> = points.iter().map(|point| point["time"].as_str().unwrap()).collect();
    assert_eq!(times, ["00", "05", "10", "15"].map(|second| format!("2026-11-22T12:00:{second}Z")));
    assert!(points.iter().all(|point| point["count"] == 85), "{points:?}");

    let some = json(dir.path(), &[&LATENCY[..], &["--where", ".n == 7", "--until", "2026-11-22T12:00:04Z"]].concat());
    assert_eq!((&some["reports"], &some["reports_matched"]), (&250.into(), &5.into()));
    assert_eq!((&some["series"][0]["group"], &some["series"][0]["max"]), (&"h0".into(), &7.0.into()));
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    // The first file takes longest. It and the second one have as many groups as are kept, so the third one has none.
    let lines =
        |groups: std::ops::Range<usize>| groups.map(|group| format!(r#"{{"g":{group},"n":1}}"#)).collect::<Vec<_>>();
    let others = vec![format!(r#"{{"x":"{}"}}"#, "x".repeat(200)); 50_000];
    write_file(dir.path(), 0, &[others, lines(0..5_000)].concat());
    write_file(dir.path(), 1, &lines(5_000..10_000));
    write_file(dir.path(), 2, &[lines(10_000..10_100), lines(10_000..10_100)].concat());
    for cpus in ["0", "0-1"] {
        let output = Command::new("taskset")
            .args(["-c", cpus, env!("CARGO_BIN_EXE_netwatch-server"), "stats", ".n", "--by", ".g", "--format", "csv"])
            .arg("--dir")
            .arg(dir.path())
            .output()
            .unwrap();
        let csv = String::from_utf8(output.stdout).unwrap();
        let groups = csv.lines().filter_map(|line| line.strip_prefix("group,")?.split(',').next()?.parse::<u32>().ok());
        assert!(groups.max().unwrap() < 10_000, "{cpus}: {csv}");
        assert!(csv.contains("other,,10180,"), "{cpus}: {csv}");
    }
}

#[test]
fn every_format_is_printed() {
    let dir = archive();
    for (format, start) in
        [("table", ".hosts[].name  COUNT"), ("json", "{\"path\""), ("csv", "series,group"), ("svg", "<svg ")]
    {
        let (code, out, _) = stats(dir.path(), &[&LATENCY[..], &["--format", format]].concat());
        assert_eq!(code, 0);
        assert!(out.starts_with(start), "{out}");
    }
}

#[test]
fn invalid_parameters_are_named_and_give_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (&["latency"][..], "invalid path at character 1"),
        (&[".a", "--by", ".b["], "invalid path at character 4"),
        (&[".a", "--quantiles", ".5,1.5"], "not a number from 0 to 1"),
        (&[".a", "--quantiles", "nan"], "not a number from 0 to 1"),
        (&[".a", "--step", "500ms"], "whole seconds"),
        (&[".a", "--step", "0s"], "whole seconds"),
        (&[".a", "--top", "100000"], "1000"),
        (&[".a", "--where", ".a =="], "expected term"),
        (&[".a", "--since", "2026-01-02", "--until", "2026-01-01"], "is later than"),
        (&[".a", "--since", "2020-01-01", "--until", "2026-01-01", "--step", "1s"], "--step is too short"),
        (&[".a", "--format", "pdf"], "possible values"),
        (&[], "required"),
    ] {
        let (code, out, error) = stats(dir.path(), args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {error}");
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    let (code, _, error) = stats(&dir.path().join("missing"), &[".a"]);
    assert_eq!(code, 2, "{error}");
}

#[test]
fn a_corrupt_file_is_named_and_the_others_count() {
    let dir = archive();
    let file =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_file()).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(&file, bytes).unwrap();
    let (code, out, error) = stats(dir.path(), &[&LATENCY[..], &["--format", "json"]].concat());
    assert_eq!(code, 3);
    assert!(error.contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
    let reports = serde_json::from_str::<serde_json::Value>(&out).unwrap()["reports"].as_u64().unwrap();
    assert!((950..=1_000).contains(&reports), "{reports}");
}

#[test]
fn reports_in_the_journal_count() {
    let dir = tempfile::tempdir().unwrap();
    let server = common::Server::start_in(dir.path(), &[("FLUSH_INTERVAL", "1h")]);
    server.post(r#"{"hosts":[{"name":"a","history":[{"ms":1},{"ms":3}]}]}"#).assert_ok();
    let all = json(dir.path(), &LATENCY);
    assert_eq!((&all["series"][0]["count"], &all["series"][0]["mean"]), (&2.into(), &2.0.into()));
}
