//! The page for people: one HTML document without script or anything to load, so that `kubectl
//! port-forward` and a browser are enough. It renews itself.

use std::fmt::Write;

use hearth_base::operator::{EndInfo, Modules, PodName, StartInfo, Status, TaskInfo, TaskKind};
use hearth_base::units::{age, age_since, bytes, seconds};
use hearth_observe::metrics::PHASES;

/// How many tasks, starts and ends are shown; of more, the page says how many there are.
const ROWS_MAX: usize = 25;

/// How often the page renews itself, in seconds.
const RENEW_SECONDS: u32 = 10;

/// The data of the status page.
#[derive(Default)]
pub struct Page {
    /// The node's name.
    pub node: String,
    /// How the daemon is.
    pub status: Status,
    /// Its tasks.
    pub tasks: Vec<TaskInfo>,
    /// The last starts, the latest first.
    pub starts: Vec<StartInfo>,
    /// The last faults, the latest first.
    pub ends: Vec<EndInfo>,
    /// The compiled modules.
    pub modules: Modules,
}

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#667;--line:#dde1e6;--card:#f6f7f9;--bad:#c4262e;--warn:#b26a00;--good:#1a7f37}
@media(prefers-color-scheme:dark){:root{--bg:#14171c;--fg:#e6e8eb;--dim:#99a;--line:#2c323a;--card:#1c2027;--bad:#ff7b72;--warn:#e3a341;--good:#56d364}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1180px;padding:20px;background:var(--bg);color:var(--fg);font:14px/1.45 system-ui,sans-serif}
h1{font-size:20px;margin:0}h2{font-size:15px;margin:26px 0 8px}.dim{color:var(--dim)}.bad{color:var(--bad)}.warn{color:var(--warn)}.good{color:var(--good)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:10px;margin-top:16px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}.card b{display:block;font-size:22px;font-weight:600}
.gauge{height:6px;border-radius:3px;background:var(--line);overflow:hidden;margin:6px 0}.gauge i{display:block;height:100%;background:#3b82f6}.gauge i.warn{background:var(--warn)}
table{border-collapse:collapse;width:100%}th{font-weight:500;color:var(--dim);text-align:left}th,td{padding:4px 8px;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}td.name{word-break:break-all}svg{display:block}
pre{margin:4px 0 0;white-space:pre-wrap;word-break:break-word;font-size:12px}summary{cursor:pointer}
.bundle{fill:#94a3b8}.lookup{fill:#38bdf8}.compile{fill:#f97316}.mounts{fill:#a78bfa}.instantiate{fill:#22c55e}.first_call{fill:#eab308}.rest{fill:#64748b55}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:12px;margin-bottom:6px}.legend svg{display:inline-block;vertical-align:-1px;margin-right:4px}
";

/// The document.
pub fn render(page: &Page) -> String {
    let mut html = String::with_capacity(32 << 10);
    let title = if page.node.is_empty() { "Hearth".into() } else { format!("Hearth on {}", page.node) };
    let title = escape(&title);
    // Writing to a string cannot fail.
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"refresh\" content=\"{RENEW_SECONDS}\"><title>{title}</title><style>{STYLE}</style></head><body>"
    );
    let status = &page.status;
    let _ = write!(
        html,
        "<h1>{title}</h1><div class=\"dim\">hearthd {} · wasmtime {} · pid {} · up {}{}</div>",
        escape(&status.version),
        escape(&status.wasmtime),
        status.pid,
        age_since(status.started_at),
        if status.draining { " · <b class=\"warn\">draining: no new tasks</b>" } else { "" },
    );
    cards(&mut html, status);
    starts(&mut html, &page.starts);
    ends(&mut html, &page.ends);
    tasks(&mut html, &page.tasks);
    modules(&mut html, &page.modules);
    html.push_str("<p class=\"dim\">Also here: <a href=\"/metrics\">/metrics</a>, /healthz, /readyz. On the node: <code>hearthctl --help</code>.</p></body></html>\n");
    html
}

fn cards(html: &mut String, status: &Status) {
    html.push_str("<div class=\"cards\">");
    let tasks = &status.tasks;
    let detail = format!("{} created, {} paused, {} stopped", tasks.created, tasks.paused, tasks.stopped);
    let all = tasks.created + tasks.running + tasks.paused + tasks.stopped;
    card(html, "tasks", "Tasks running", &tasks.running.to_string(), Some((all, tasks.limit)), &detail);
    let pool = &status.pool;
    let detail = format!("of {} slots; {} of {} beyond the pool", pool.slots, pool.on_demand, pool.on_demand_limit);
    card(html, "pool", "Pool in use", &pool.used.to_string(), Some((pool.used, pool.slots)), &detail);
    let modules = &status.modules;
    let detail = format!(
        "{} prepared; {} of {}; {} compiling",
        modules.prepared,
        bytes(modules.bytes),
        bytes(modules.bytes_limit),
        modules.compiles_pending
    );
    let gauge = Some((modules.bytes, modules.bytes_limit));
    card(html, "cache", "Modules compiled", &modules.artifacts.to_string(), gauge, &detail);
    let workers = &status.workers;
    let detail = format!("{} idle, {} blocked; {} guests wait", workers.idle, workers.blocked, workers.run_queue);
    card(html, "workers", "Workers in guests", &workers.running.to_string(), None, &detail);
    html.push_str("</div>");
}

fn card(html: &mut String, id: &str, name: &str, value: &str, gauge: Option<(u64, u64)>, detail: &str) {
    let _ = write!(html, "<div class=\"card\" id=\"{id}\">{name}<b>{value}</b>");
    if let Some((used, limit)) = gauge {
        let percent = (used as f64 / limit.max(1) as f64 * 100.0).min(100.0);
        let class = if percent >= 90.0 { " class=\"warn\"" } else { "" };
        let _ = write!(html, "<div class=\"gauge\"><i{class} style=\"width:{percent:.1}%\"></i></div>");
    }
    let _ = write!(html, "<span class=\"dim\">{detail}</span></div>");
}

fn starts(html: &mut String, starts: &[StartInfo]) {
    html.push_str("<h2>Recent starts</h2><div class=\"legend\">");
    for name in PHASES.iter().map(|(_, name)| *name).chain(["rest"]) {
        let _ = write!(
            html,
            "<span><svg width=\"10\" height=\"10\"><rect class=\"{name}\" width=\"10\" height=\"10\"/></svg>{}</span>",
            name.replace('_', " ")
        );
    }
    html.push_str("</div><table id=\"starts\"><tr><th class=\"n\">ago<th>task<th>from<th class=\"n\">time<th>phases");
    for start in starts.iter().take(ROWS_MAX) {
        let name = name(start.of.pod.as_ref(), &start.of.namespace, &start.of.id);
        let _ = write!(html, "<tr><td class=\"n\">{}<td class=\"name\">{name}", age_since(start.created_at));
        match (&start.error, start.own_seconds) {
            (Some(error), _) => {
                let _ = write!(html, "<td class=\"bad\">failed<td class=\"n\"><td class=\"bad\">{}", escape(error));
            }
            (None, own) => {
                let source = start.source.as_deref().unwrap_or("-");
                let time = own.map(seconds).unwrap_or_default();
                let _ = write!(html, "<td>{}<td class=\"n\">{time}<td>", escape(source));
                bar(html, start, own.unwrap_or(0.0));
            }
        }
    }
    none_yet(html, starts.is_empty(), 5);
    html.push_str("</table>");
}

/// A start as a bar of its phases; their lengths are shares of the whole.
fn bar(html: &mut String, start: &StartInfo, own: f64) {
    const WIDTH: f64 = 420.0;
    let known: f64 = start.phases.iter().map(|phase| phase.seconds).sum();
    let whole = own.max(known).max(1e-9);
    let _ = write!(html, "<svg width=\"{WIDTH}\" height=\"14\" role=\"img\">");
    let mut x = 0.0;
    let mut part = |class: &str, length: f64| {
        let width = length / whole * WIDTH;
        let _ = write!(
            html,
            "<rect class=\"{class}\" x=\"{x:.1}\" width=\"{width:.1}\" height=\"14\"><title>{} {}</title></rect>",
            class.replace('_', " "),
            seconds(length)
        );
        x += width;
    };
    for (_, phase) in PHASES {
        if let Some(found) = start.phases.iter().find(|found| found.name == phase) {
            part(phase, found.seconds);
        }
    }
    part("rest", (whole - known).max(0.0));
    html.push_str("</svg>");
}

fn ends(html: &mut String, ends: &[EndInfo]) {
    html.push_str("<h2>Recent traps and other ends to look into</h2><table id=\"traps\"><tr><th class=\"n\">ago<th>task<th>what<th>text");
    for end in ends.iter().take(ROWS_MAX) {
        let what = end.kind.name();
        let text = escape(&end.text);
        let first = text.lines().next().unwrap_or_default();
        let _ = write!(
            html,
            "<tr><td class=\"n\">{}<td class=\"name\">{}<td class=\"bad\">{what} ({})<td>",
            age_since(end.at),
            name(end.of.pod.as_ref(), &end.of.namespace, &end.of.id),
            end.status,
        );
        let _ = match text.trim_end().contains('\n') {
            true => write!(html, "<details><summary>{first}</summary><pre>{text}</pre></details>"),
            false => write!(html, "{text}"),
        };
    }
    none_yet(html, ends.is_empty(), 4);
    html.push_str("</table>");
}

fn tasks(html: &mut String, tasks: &[TaskInfo]) {
    let mut shown: Vec<_> = tasks.iter().filter(|task| task.kind != TaskKind::Sandbox).collect();
    let all = shown.len();
    shown.sort_by(|a, b| b.cpu_seconds.total_cmp(&a.cpu_seconds));
    shown.truncate(ROWS_MAX);
    html.push_str("<h2>Tasks</h2>");
    if all > shown.len() {
        let _ = write!(
            html,
            "<div class=\"dim\">Those {} of {all} with most CPU time; all: <code>hearthctl ps</code></div>",
            shown.len()
        );
    }
    html.push_str("<table id=\"task-list\"><tr><th>task<th>image<th>state<th class=\"n\">CPU<th class=\"n\">throttled<th class=\"n\">memory<th class=\"n\">age");
    for task in &shown {
        let (class, state) = match (task.exit_status, task.out_of_memory) {
            (Some(status), true) => ("bad", format!("stopped ({status}, out of memory)")),
            (Some(0), _) => ("dim", "stopped (0)".into()),
            (Some(status), _) => ("bad", format!("stopped ({status})")),
            (None, _) => (if task.state == "running" { "good" } else { "warn" }, task.state.clone()),
        };
        let _ = write!(
            html,
            "<tr><td class=\"name\">{}<td class=\"name\">{}<td class=\"{class}\">{state}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{} / {}<td class=\"n\">{}",
            name(task.pod.as_ref(), &task.namespace, &task.id),
            escape(task.image.as_ref().unwrap_or(&task.program)),
            seconds(task.cpu_seconds),
            seconds(task.throttled_seconds),
            bytes(task.memory_bytes),
            bytes(task.memory_limit_bytes),
            age_since(task.created_at),
        );
    }
    none_yet(html, shown.is_empty(), 7);
    html.push_str("</table>");
}

fn modules(html: &mut String, modules: &Modules) {
    if modules.compiling.is_empty() && modules.rejected.is_empty() {
        return;
    }
    html.push_str("<h2>Not compiled</h2><table id=\"not-compiled\"><tr><th>module<th>name<th>why");
    for module in modules.compiling.iter().take(ROWS_MAX) {
        let short = module.digest.get(..12).unwrap_or_default();
        let waits = age(module.age_seconds);
        let _ = write!(
            html,
            "<tr><td>{short}<td class=\"name\">{}<td class=\"warn\">compiling, for {waits}",
            escape(&module.name)
        );
    }
    for module in modules.rejected.iter().take(ROWS_MAX) {
        let short = module.digest.get(..12).unwrap_or_default();
        let _ = write!(html, "<tr><td>{short}<td><td class=\"bad\">{}", escape(&module.reason));
    }
    html.push_str("</table>");
}

fn none_yet(html: &mut String, none: bool, columns: u32) {
    if none {
        let _ = write!(html, "<tr><td class=\"dim\" colspan=\"{columns}\">none yet");
    }
}

/// The pod's name, or the task's.
fn name(pod: Option<&PodName>, namespace: &str, id: &str) -> String {
    escape(&match pod {
        Some(pod) => format!("{}/{}/{}", pod.namespace, pod.name, pod.container),
        None => format!("{namespace}/{id}"),
    })
}

/// Text as HTML, also text of a hostile guest.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_base::operator::{PhaseInfo, TaskName};

    fn of(id: &str) -> TaskName {
        TaskName { id: id.into(), ..TaskName::default() }
    }

    #[test]
    fn what_a_guest_says_stays_text_and_nothing_is_loaded_from_elsewhere() {
        let evil = "<script>alert(1)</script>\n\"'&\x1b";
        let page = Page {
            node: evil.into(),
            tasks: vec![TaskInfo { id: evil.into(), program: evil.into(), ..TaskInfo::default() }],
            starts: vec![StartInfo { of: of(evil), error: Some(evil.into()), ..StartInfo::default() }],
            ends: vec![EndInfo { of: of(evil), text: evil.into(), ..EndInfo::default() }],
            ..Page::default()
        };
        let html = render(&page);
        assert!(!html.contains("<script") && !html.contains('\x1b'), "{html}");
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        for outside in ["http://", "https://", "//cdn", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_start_is_a_bar_of_its_phases_and_of_what_is_left() {
        let phase = |name: &str, seconds| PhaseInfo { name: name.into(), began_seconds: 0.0, seconds };
        let start = StartInfo {
            own_seconds: Some(1e-3),
            source: Some("warm".into()),
            phases: vec![phase("first_call", 1e-4), phase("mounts", 5e-4)],
            ..StartInfo::default()
        };
        let mut html = String::new();
        starts(&mut html, &[start]);
        assert!(html.contains("class=\"mounts\" x=\"0.0\" width=\"210.0\""), "{html}");
        assert!(html.contains("class=\"first_call\" x=\"210.0\" width=\"42.0\""), "{html}");
        assert!(html.contains("class=\"rest\" x=\"252.0\" width=\"168.0\""), "{html}");
    }
}
