//! The face for people: rendered on the server, live by Server-Sent Events, no build step.

use std::collections::BTreeMap;

use askama::Template;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;

use crate::api::handoff::passport_of;
use crate::api::view::MachineView;
use crate::api::{Failure, view_of};
use crate::engine::Engine;
use crate::error::Error;
use crate::handoff::page;
use crate::handoff::passport::Signed;

pub fn router(engine: Engine) -> Router {
    let asset =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    Router::new()
        .route("/", get(machines))
        .route("/machines/{machine}/passport", get(passport))
        .route("/console/style.css", asset("text/css", include_str!("../../templates/console/style.css")))
        .route("/console/live.js", asset("text/javascript", include_str!("../../templates/console/live.js")))
        .with_state(engine)
}

#[derive(Template)]
#[template(path = "machines.html")]
struct Page {
    counts: Vec<(String, usize)>,
    machines: Vec<Row>,
}

struct Row {
    name: String,
    place: String,
    what: String,
    state: String,
    now: String,
    share: Option<u64>,
    hint: Option<String>,
    since: String,
}

async fn machines(State(engine): State<Engine>) -> Result<impl IntoResponse, Failure> {
    let machines: Vec<MachineView> = engine.machines().iter().map(|m| view_of(&engine, m, false)).collect();
    let mut counts = BTreeMap::new();
    for machine in &machines {
        *counts.entry(machine.state.clone()).or_insert(0) += 1;
    }
    let page = Page { counts: counts.into_iter().collect(), machines: machines.into_iter().map(row).collect() };
    let html =
        page.render().map_err(|e| Error::internal("console.render", "the page cannot be rendered").because(e))?;
    Ok(Html(html))
}

/// For the printer.
async fn passport(State(engine): State<Engine>, Path(name): Path<String>) -> Result<impl IntoResponse, Failure> {
    let file = passport_of(&engine, &name)?;
    let signed = Signed::of(file)
        .map_err(|why| Error::internal("passport.stored", format!("a stored passport is none: {why}")))?;
    Ok(Html(page::html(&signed)?))
}

fn row(m: MachineView) -> Row {
    let share = m
        .progress
        .as_ref()
        .filter(|p| p.total > 0)
        .map(|p| (p.done.min(p.total) as f64 / p.total as f64 * 100.0) as u64);
    let now = match (&m.problem, &m.progress, &m.waiting) {
        (Some(problem), _, _) => problem.title.clone(),
        (None, Some(progress), _) => progress.step.clone(),
        (None, None, Some(waiting)) => waiting.reason.clone(),
        (None, None, None) => m.hostname.as_ref().map_or(String::new(), |h| format!("{h}")),
    };
    Row {
        place: m.place.map_or(String::new(), |p| p.to_string()),
        what: [m.role.map(|r| r.to_string()), m.firmware.map(|f| f.to_string())]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", "),
        name: m.name,
        state: m.state,
        now,
        share,
        hint: m.problem.and_then(|p| p.hint),
        since: jiff::Timestamp::from_millisecond(m.since).map_or(String::new(), |t| t.to_string()),
    }
}
