//! Debian's Prometheus scrapes a loaded node. The dashboards' panels and the rules have data, also during an upgrade,
//! and the five questions of dashboards/README.md have their answers.

use std::fs;
use std::path::PathBuf;

use hearth_tests::daemons::HearthdOptions;
use hearth_tests::process::Process;
use hearth_tests::{Container, Guest, LONG, Node, Pod, Running, SHORT, eventually, paths};
use serde_json::Value;

use super::pictures;
use super::{curl, only_on_hearth};

/// A Prometheus on the machine, private to it.
pub struct Prometheus<'a> {
    node: &'a Node,
    _process: Process,
    address: String,
}

impl<'a> Prometheus<'a> {
    /// Scrapes the daemon every second, with our rules.
    fn start(node: &'a Node) -> Prometheus<'a> {
        let address = "127.0.0.1:9090".to_owned();
        let rules = dashboards();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{rules:?}]\n\
             scrape_configs:\n  - job_name: hearth\n    honor_labels: true\n    static_configs: [{{ targets: [{:?}] }}]\n",
            node.metrics_address(),
            rules = format!("{}/*.yaml", rules.display()),
        );
        let file = node.write("prometheus.yml", config.as_bytes());
        let mut command = node.machine().command("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", node.path("prometheus").display()))
            .arg(format!("--web.listen-address={address}"));
        let log = fs::File::create(node.path("prometheus.log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let process = Process::start("prometheus", &mut command);
        Prometheus { node, _process: process, address }
    }

    /// The answer to a query, or its error.
    pub fn ask(&self, path: &str, parameters: &[(&str, String)]) -> Result<Vec<Value>, String> {
        let mut arguments: Vec<String> = vec!["--get".into()];
        for (name, value) in parameters {
            arguments.extend(["--data-urlencode".into(), format!("{name}={value}")]);
        }
        arguments.push(format!("http://{}/api/v1/{path}", self.address));
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let answer = curl(self.node, &arguments);
        let answer: Value = serde_json::from_slice(&answer.stdout).map_err(|error| format!("{error}: {answer}"))?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// The series that an expression gives now.
    fn series(&self, expression: &str) -> Result<Vec<Value>, String> {
        self.ask("query", &[("query", expression.to_owned())])
    }

    /// Waits until an expression has a result.
    pub fn wait_for(&self, expression: &str) {
        let given = || matches!(self.series(expression).as_deref(), Ok([_, ..])).then_some(());
        if hearth_tests::wait::within(LONG, given).is_none() {
            panic!("{expression} gives {:?}", self.series(expression));
        }
    }
}

/// Where the dashboards are.
pub fn dashboards() -> PathBuf {
    paths::repository().join("dashboards")
}

/// One expression of a panel.
#[derive(Debug)]
pub struct Target {
    /// The dashboard's title.
    pub dashboard: String,
    /// The panel's title.
    pub panel: String,
    /// The query, for all nodes.
    pub expression: String,
    /// The template of its series' names.
    pub legend: String,
}

/// Every panel's expressions.
pub fn panels() -> Vec<Target> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dashboards()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let dashboard: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for panel in dashboard["panels"].as_array().unwrap() {
            let target = |target: &Value| Target {
                dashboard: text(&dashboard["title"]),
                panel: text(&panel["title"]),
                expression: text(&target["expr"]).replace("$instance", ".*").replace("$__rate_interval", "1m"),
                legend: text(&target["legendFormat"]),
            };
            all.extend(panel["targets"].as_array().into_iter().flatten().map(target));
        }
    }
    all
}

/// The name of each recording rule, and the left side of each alert's comparison, with their expressions.
fn rules() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for file in ["recording-rules.yaml", "alert-rules.yaml"] {
        let text = fs::read_to_string(dashboards().join(file)).unwrap();
        for line in text.lines().map(str::trim_start) {
            if let Some(name) = line.strip_prefix("- record: ") {
                all.push((name.to_owned(), name.to_owned()));
            } else if file.starts_with("alert")
                && let Some(expression) = line.strip_prefix("expr: ")
            {
                let compared = [" == ", " > "].iter().find_map(|operator| expression.rsplit_once(operator));
                let (left, _) = compared.unwrap_or_else(|| panic!("{expression} compares nothing"));
                all.push((expression.to_owned(), left.to_owned()));
            }
        }
    }
    assert!(all.len() >= 25, "{all:?}");
    all
}

/// Checks that every panel and rule has data. A panel must not show a series of an older daemon beside that of the
/// daemon in charge, under the same legend.
fn all_have_data(prometheus: &Prometheus<'_>) {
    let panels =
        panels().into_iter().map(|target| (format!("{}: {}", target.dashboard, target.panel), target.expression));
    let wanted: Vec<_> =
        panels.map(|panel| (panel, true)).chain(rules().into_iter().map(|rule| (rule, false))).collect();
    let mut missing = Vec::new();
    let found = hearth_tests::wait::within(LONG, || {
        let lacks = |((_, expression), is_panel): &&((String, String), bool)| match prometheus.series(expression) {
            Ok(series) => {
                series.is_empty() || (*is_panel && series.iter().any(|one| one["metric"]["generation"].is_string()))
            }
            Err(_) => true,
        };
        missing = wanted.iter().filter(lacks).collect();
        missing.is_empty().then_some(())
    });
    let why: Vec<_> =
        missing.iter().map(|((place, expression), _)| (place, expression, prometheus.series(expression))).collect();
    assert!(found.is_some(), "no data, or series of an older daemon without a label: {why:#?}");
}

#[test]
fn prometheus_finds_data_for_every_panel_and_every_rule_of_a_loaded_node() {
    only_on_hearth!();
    let options = HearthdOptions { metrics: "pods = true".into(), ..HearthdOptions::default() };
    let node = Node::with(options);
    for file in ["recording-rules.yaml", "alert-rules.yaml"] {
        let path = dashboards().join(file).display().to_string();
        node.program_on_machine("promtool", ["check", "rules", "--lint-fatal", path.as_str()]).ok();
    }
    let prometheus = Prometheus::start(&node);
    let load = Load::start(&node);
    let compiling = compile_many(&node, 0);
    all_have_data(&prometheus);
    load.answers_the_five_questions(&node, &prometheus);
    pictures::take(&node, &prometheus);
    drop(compiling);
    two_generations_are_told_apart(&node, &prometheus);
}

/// During an upgrade the endpoint has the metrics of both daemons.
fn two_generations_are_told_apart(node: &Node, prometheus: &Prometheus<'_>) {
    node.upgrade_hearthd();
    let pod = node.pod("after").run();
    let _container = pod.container("after", &node.program(&Guest::SLEEP)).args(["3600"]).start();
    prometheus.wait_for("sum(hearth_tasks{generation!=\"\",state=\"running\"}) >= 50 and sum(hearth_tasks{generation=\"\",state=\"running\"}) >= 1");
    all_have_data(prometheus);
    let expression = |panel: &str, part: &str| {
        let found = panels().into_iter().find(|target| target.panel == panel && target.expression.contains(part));
        found.unwrap_or_else(|| panic!("no panel {panel} with {part}")).expression
    };
    // Values of the node are shown once.
    prometheus.wait_for(&format!("{} == 1", expression("Nodes up", "build_info")));
    let once = [
        ("Store", "hearth_module_store_bytes"),
        ("Artifacts and prepared modules", "hearth_module_store_artifacts"),
        ("Tasks", "hearth_tasks_limit"),
    ];
    for (panel, metric) in once {
        let shown = expression(panel, metric);
        prometheus.wait_for(&format!("{shown} == scalar({metric}{{generation=\"\"}}) and on () {shown} > 0"));
    }
    // Values of each daemon are summed.
    prometheus.wait_for(&format!(
        "{} == scalar(sum(hearth_tasks{{state=\"running\"}}))",
        expression("Tasks running", "running")
    ));
    // The free slots are the slots of the daemon in charge: no new task gets a slot of the older one.
    prometheus.wait_for("hearth:pool_used:ratio == on (instance) hearth_pool_slots{generation=\"\",state=\"used\"} / on (instance) sum by (instance) (hearth_pool_slots{generation=\"\"})");
    prometheus.wait_for("hearth:pool_used:ratio < 0.01");
}

/// Fifty pods that run, one of which computes against a quota and one of which is at its memory limit, and five
/// that crash.
struct Load {
    _pods: Vec<Pod>,
    _containers: Vec<Container>,
}

impl Load {
    fn start(node: &Node) -> Load {
        let (sleep, trap) = (node.program(&Guest::SLEEP), node.program(&Guest::TRAP));
        let (spin, grow) = (node.program(&Guest::SPIN), node.program(&Guest::GROW));
        let (mut pods, mut containers) = (Vec::new(), Vec::new());
        for number in 0..47 {
            let pod = node.pod(&format!("shop-{number}")).run();
            containers.push(pod.container("worker", &sleep).args(["3600"]).start());
            pods.push(pod);
        }
        for number in 0..5 {
            let pod = node.pod(&format!("crasher-{number}")).run();
            containers.push(pod.container("import", &trap).start());
            pods.push(pod);
        }
        let [web, throttled, full] = ["web", "throttled", "full"].map(|name| node.pod(name).run());
        // Its metrics by pod are there before its first request.
        containers.push(web.container("web", &node.program(&Guest::HTTP)).start());
        let limited = throttled.container("render", &spin).options(|options| {
            options.resources.cpu_period = 100_000;
            options.resources.cpu_quota = 20_000;
        });
        containers.push(limited.start());
        // It takes memory up to its limit, and then sleeps.
        let limit = 8 << 20;
        let greedy = full.container("cache", &grow).args(["100", "3600"]);
        containers.push(greedy.options(|options| options.resources.memory_limit_in_bytes = limit).start());
        pods.extend([web, throttled, full]);
        Load { _pods: pods, _containers: containers }
    }

    /// Checks the answer of a panel and of a command to each question: see dashboards/README.md.
    fn answers_the_five_questions(&self, node: &Node, prometheus: &Prometheus<'_>) {
        // Why was this pod's start slow? It was compiled.
        prometheus.wait_for(
            "topk(1, max_over_time(histogram_quantile(0.99, sum by (le, phase) (rate(hearth_start_phase_seconds_bucket[1m])))[5m:1s])) and on (phase) label_replace(vector(1), \"phase\", \"compile\", \"\", \"\")",
        );
        let start = node.ask(&["trace", "pod:stories/throttled"]);
        assert_eq!((&start["source"], &start["pod"]["container"]), (&"compiled".into(), &"render".into()), "{start}");
        let phases = start["phases"].as_array().unwrap();
        let slowest =
            phases.iter().max_by(|a, b| a["seconds"].as_f64().unwrap().total_cmp(&b["seconds"].as_f64().unwrap()));
        assert_eq!(slowest.unwrap()["name"], "compile", "{start}");
        // Which pod uses the CPU?
        prometheus.wait_for(
            "topk(1, sum by (pod) (rate(hearth_task_cpu_seconds_total{pod!=\"\"}[1m]))) and on (pod) hearth_task_memory_bytes{pod=\"throttled\"}",
        );
        let top = node.ask(&["top", "--interval", "1"]);
        assert_eq!(top[0]["pod"]["name"], "throttled", "{top}");
        assert!(top[0]["throttled_seconds"].as_f64() > Some(0.0), "{top}");
        // Is the pool about to be full? All containers have a slot but the crashed ones, the sandboxes, and the
        // service, which has no instance at rest.
        prometheus.wait_for("sum(hearth_pool_slots{state=\"used\"}) == 49 and on () hearth:pool_used:ratio > 0.04");
        assert_eq!(node.ask(&["status"])[0]["pool"]["used"], 49);
        // Which images are not compiled yet?
        prometheus.wait_for("max_over_time(sum(hearth_compiles_pending)[5m:1s]) >= 2");
        // What trapped, and with what text?
        prometheus.wait_for("sum(hearth_task_traps_total{pod=~\"crasher.*\"}) == 5");
        let traps = node.ask(&["traps"]);
        let of_crashers = |trap: &&Value| {
            trap["pod"]["name"].as_str().is_some_and(|pod| pod.starts_with("crasher"))
                && trap["text"].as_str().is_some_and(|text| text.contains("unreachable"))
        };
        assert_eq!(traps.as_array().unwrap().iter().filter(of_crashers).count(), 5, "{traps}");
        // Which container is at its memory limit?
        prometheus.wait_for("hearth_task_memory_refused_total{pod=\"full\"} > 0");
        prometheus.wait_for("hearth_task_memory_bytes{pod=\"full\"} / hearth_task_memory_limit_bytes > 0.8");
    }
}

/// Starts compiles of large modules, until some wait in the queue. Modules of another `mark` are other modules.
pub fn compile_many(node: &Node, mark: u8) -> Vec<Running> {
    let big = Guest::BIG.wasm_bytes();
    let warm = |number: u8| {
        // A custom section makes it another module.
        let bytes = [&big[..], &[0, 3, 1, mark, number]].concat();
        let file = node.write(&format!("big-{mark}-{number}.wasm"), &bytes).display().to_string();
        node.hearthctl(["modules", "warm", file.as_str()]).spawn()
    };
    // Enough that a scrape, once a second, finds some in the queue, also on a fast machine.
    let running = (0..8).map(warm).collect();
    eventually("some wait to be compiled", SHORT, || {
        let list = node.ask(&["modules", "list"]);
        list["compiling"].as_array().is_some_and(|all| all.len() >= 2).then_some(())
    });
    running
}
