//! The documentation and the Makefile agree with the code.

use std::fs;
use std::path::Path;
use std::process::Command;

use netwatch_server::config::{GROUPS, Group, Setting, settings};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn table(group: &Group) -> String {
    // A vertical bar would end the cell.
    let cell = |text: &str| text.replace('|', "\\|");
    let row = |setting: &Setting| {
        let Setting { name, default, takes, help } = setting;
        format!("| `{name}` | `{default}` | {} Valid: {}. |\n", cell(help), cell(takes))
    };
    let rows: String = group.settings.iter().map(row).collect();
    format!("| setting | default | meaning |\n| --- | --- | --- |\n{rows}")
}

#[test]
fn the_tables_of_settings_are_those_of_the_code() {
    let path = repository().join("docs/configuration.md");
    let found = fs::read_to_string(&path).unwrap();
    let mut expected = found.clone();
    for group in GROUPS {
        let begin = format!("<!-- settings: {} -->\n", group.title.to_lowercase());
        let (before, rest) = expected.split_once(&begin).unwrap_or_else(|| panic!("no marker {begin}"));
        let (_, after) = rest.split_once("<!-- end -->").expect("the table has an end");
        expected = format!("{before}{begin}\n{}\n<!-- end -->{after}", table(group));
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
        return;
    }
    assert!(found == expected, "docs/configuration.md is outdated: UPDATE_DOCS=1 cargo test --test docs");
}

#[test]
fn the_readme_is_short_and_names_existing_settings_with_their_defaults() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(readme.len() <= 8192, "README.md has {} bytes", readme.len());
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | `"));
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let mut named = 0;
    for (name, rest) in rows.filter(|(name, _)| is_name(name)) {
        let setting = settings().find(|setting| setting.name == name);
        let setting = setting.unwrap_or_else(|| panic!("{name} is not a setting"));
        assert_eq!(rest.split('`').next(), Some(setting.default), "{name}");
        named += 1;
    }
    assert!(named >= 5, "{named} settings");
}

#[test]
fn make_passes_settings_on_to_the_server() {
    let rule = "--eval=show: ; @echo HOST=$$HOST PORT=$$PORT";
    let mut make = Command::new("make");
    make.args(["-s", rule, "show"]).current_dir(repository()).env("HOST", "127.0.0.1").env("PORT", "1234");
    let output = make.output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "HOST=127.0.0.1 PORT=1234\n", "{:?}", output.stderr);
}

#[test]
fn the_memory_limits_of_all_deployments_are_equal() {
    let limit = |file: &str, key: &str| {
        let text = fs::read_to_string(repository().join("deploy").join(file)).unwrap();
        let value = text.lines().filter_map(|line| line.trim().strip_prefix(key)).next_back().unwrap();
        value.trim_end_matches(|c: char| !c.is_ascii_digit()).to_owned()
    };
    assert_eq!(limit("compose.yaml", "mem_limit: "), "512");
    assert_eq!(limit("netwatch-server.service", "MemoryMax="), "512");
    assert_eq!(limit("kubernetes.yaml", "memory: "), "512");
}

#[test]
fn haproxy_starts_with_a_common_limit_of_open_files() {
    let config = fs::read_to_string(repository().join("deploy/haproxy.cfg")).unwrap();
    let maxconn = config.lines().find_map(|line| line.trim().strip_prefix("maxconn ")).unwrap();
    let connections: u32 = maxconn.split_whitespace().next().unwrap().parse().unwrap();
    // Two descriptors per connection, and some for listeners, threads and health checks.
    assert!(2 * connections + 500 <= 20_000, "maxconn {connections}");
}
