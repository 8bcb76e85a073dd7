use clap::Parser;

use super::*;

#[derive(Parser)]
struct Start {
    #[command(flatten)]
    args: StartArgs,
}

fn args(line: &[&str]) -> StartArgs {
    let line = std::iter::once(&"engram").chain(line);
    Start::try_parse_from(line)
        .expect("a valid command line")
        .args
}

fn over(line: &[&str], file: &str) -> Result<Config, ConfigError> {
    args(line).over(file::parse("test.toml", file)?)
}

#[test]
fn defaults_are_loopback() {
    let config = over(&["--data-dir", "d"], "").expect("valid");
    assert_eq!(config.listen, "127.0.0.1:7400");
    assert_eq!(config.peer_listen, "127.0.0.1:7401");
    assert_eq!(config.http_listen, "127.0.0.1:7402");
    assert_eq!(config.limits, Limits::default());
    assert!(!config.insecure && config.join.is_empty());
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let file = r#"
        data_dir = "from-file"
        listen = "127.0.0.1:1"
        zone = "file"
        insecure = true
        join = ["a:1", "b:2"]
        [limits]
        request_timeout_millis = 7
    "#;
    let line = [
        "--listen",
        "127.0.0.1:2",
        "--insecure=false",
        "--request-timeout-millis",
        "9",
    ];
    let config = over(&line, file).expect("valid");
    assert_eq!(config.data_dir, PathBuf::from("from-file"));
    assert_eq!(config.listen, "127.0.0.1:2");
    assert_eq!(config.zone, "file");
    assert!(!config.insecure);
    assert_eq!(config.join, ["a:1", "b:2"]);
    assert_eq!(config.limits.request_timeout, Duration::from_millis(9));
    assert_eq!(config.peer_listen, DEFAULT_PEER_LISTEN);
}

/// clap reads the environment below the flags. Setting variables would race other tests, so this
/// checks that every option is bound to one.
#[test]
fn every_option_has_an_environment_variable() {
    use clap::CommandFactory as _;
    for option in Start::command().get_arguments() {
        let name = option.get_id().as_str().to_uppercase();
        let bound = option
            .get_env()
            .map(|env| env.to_string_lossy().into_owned());
        assert_eq!(bound, Some(format!("ENGRAM_{name}")));
    }
}

#[test]
fn insecure_needs_no_value_and_join_takes_a_list() {
    let config = over(
        &["--data-dir", "d", "--insecure", "--join", "a:1,[::1]:2"],
        "",
    )
    .expect("valid");
    assert!(config.insecure);
    assert_eq!(config.join, ["a:1", "[::1]:2"]);
}

#[test]
fn routes_to_peers_come_from_flags_or_the_file() {
    let line = ["--data-dir", "d", "--peer-route", "a:1=b:2,[::1]:3=c:4"];
    let config = over(&line, "peer_routes = [\"x:1=y:2\"]").expect("valid");
    let routes = [("a:1", "b:2"), ("[::1]:3", "c:4")];
    let routes = routes.map(|(from, to)| (from.to_owned(), to.to_owned()));
    assert_eq!(config.peer_routes, Routes::from(routes));
    let config = over(&line[..2], "peer_routes = [\"x:1=y:2\"]").expect("valid");
    assert_eq!(config.peer_routes.len(), 1);
}

#[test]
fn what_the_file_may_not_say_is_named() {
    for file in [
        "lisen = \"x\"",
        "[limits]\nmax = 1",
        "join = 3",
        "log_format = \"xml\"",
        "==",
    ] {
        let error = over(&["--data-dir", "d"], file).expect_err(file);
        assert!(matches!(error, ConfigError::File { .. }), "{file}: {error}");
    }
    assert!(matches!(
        args(&["--config", "/nonexistent/engram.toml"]).resolve(),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn values_out_of_range_are_refused() {
    assert_eq!(over(&[], ""), Err(ConfigError::NoDataDir));
    let bad: [&[&str]; 12] = [
        &["--listen", "7400"],
        &["--listen", ":7400"],
        &["--peer-listen", "h:65536"],
        &["--http-listen", "::1:80"],
        &["--join", "a:0"],
        &["--advertise-host", ""],
        &["--peer-route", "a:1"],
        &["--peer-route", "a:1=b:0"],
        &["--peer-route", "a:1=b:1,a:1=c:1"],
        &["--log-level", "engram=loud"],
        &["--request-timeout-millis", "0"],
        &["--requests-per-connection-max", "0"],
    ];
    for line in bad {
        let line = [&["--data-dir", "d"], line].concat();
        let error = over(&line, "").expect_err("refused");
        assert!(
            matches!(error, ConfigError::Invalid { .. }),
            "{line:?}: {error}"
        );
    }
}
