//! `statefuld top`: one namespace on a terminal, kept up to date, with what can be done about it at a key.
//!
//! Works with any Kubernetes server: it is a client, and shows what [`crate::overview`] makes of the API.
//!
//! ```text
//!  watches ──something changed──▶ Overview::read ──▶ Model ──▶ draw ──▶ terminal
//!                                                      ▲ keys, log lines, events
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `model` | pure: what is shown, and what a key does |
//! | `draw` | pure: from the model to lines |
//! | `screen` | lines on a terminal |
//! | `snapshot` | the same once, as a table or JSON |
//! | `feed` | what comes from the API: changes, logs, events |
//! | `words` | sizes and times, as both print them |

mod draw;
mod feed;
mod model;
mod screen;
mod snapshot;
mod words;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result};
use crossterm::event::{self, Event as TerminalEvent, KeyEventKind};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::{self, Output};
use crate::overview::Overview;
use crate::overview::acts::Act;
use crate::{connect, say};
use feed::{Feed, News};
use model::{Effect, Model};
use screen::Screen;

/// How often the screen is drawn anew though nothing came: ages go on.
const TICK: Duration = Duration::from_secs(1);
/// What waits to be taken in, at most; who brings more waits.
const QUEUE: usize = 256;

/// Runs the command.
pub async fn run(args: cli::Top) -> Result<ExitCode> {
    let ambient = Ambient::system();
    let client = connect::client(&args.server).await?;
    let on_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let output = args.output.or_else(|| (!on_terminal).then_some(Output::Table));
    if let Some(output) = output {
        let overview = Overview::read(&client, &args.namespace, ambient.now()).await?;
        match output {
            Output::Json => say::print(serde_json::to_string_pretty(&overview)?),
            Output::Table => say::print(snapshot::table(&overview, ambient.now())),
        }
        return Ok(ExitCode::SUCCESS);
    }
    // A server that does not answer is told before the screen is taken.
    let first = Overview::read(&client, &args.namespace, ambient.now()).await?;
    let mut model = Model::new(args.namespace);
    model.take(first);
    let screen = Screen::open().context("the terminal cannot be used")?;
    Session { screen, model, client, ambient }.run().await?;
    Ok(ExitCode::SUCCESS)
}

/// One look, until it is left.
struct Session {
    screen: Screen,
    model: Model,
    client: Client,
    ambient: Ambient,
}

impl Session {
    async fn run(mut self) -> Result<()> {
        let (sender, mut news) = mpsc::channel(QUEUE);
        let mut feed =
            Feed::start(self.client.clone(), self.model.namespace.clone(), self.ambient.clone(), sender.clone());
        let mut events = terminal_events();
        let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
        let mut hang_up = signal(SignalKind::hangup()).context("signals cannot be received")?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            let (model, now) = (&mut self.model, self.ambient.now());
            self.screen.show(|size| draw::draw(model, size, now)).context("the terminal cannot be written")?;
            let effect = tokio::select! {
                Some(event) = events.recv() => self.on_terminal(&event),
                Some(news) = news.recv() => {
                    self.on_news(news);
                    Effect::None
                }
                _ = tick.tick() => Effect::None,
                _ = terminate.recv() => Effect::Quit,
                _ = hang_up.recv() => Effect::Quit,
                else => Effect::Quit,
            };
            match effect {
                Effect::None => {}
                Effect::Quit => return Ok(()),
                Effect::Do(act) => self.carry_out(act, sender.clone()),
                Effect::Open(pod) => feed.open(self.model.container_of(&pod), pod),
                Effect::Close => feed.close(),
            }
        }
    }

    fn on_terminal(&mut self, event: &TerminalEvent) -> Effect {
        match event {
            TerminalEvent::Key(key) if key.kind != KeyEventKind::Release => self.model.press(*key),
            _ => Effect::None,
        }
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Overview(Ok(overview)) => self.model.take(overview),
            News::Overview(Err(why)) => self.model.lost = Some(why),
            News::Log(pod, line) => self.model.log(&pod, line),
            News::Events(pod, events) => self.model.events(&pod, events),
            News::Done(said) => self.model.note(said),
        }
    }

    /// Does something beside what is shown; what came of it is told.
    fn carry_out(&self, act: Act, news: mpsc::Sender<News>) {
        let (client, namespace, now) = (self.client.clone(), self.model.namespace.clone(), self.ambient.now());
        tokio::spawn(async move {
            let said = act.carry_out(&client, &namespace, now).await.map_err(|error| format!("{error:#}"));
            // Nobody listens any more once the screen is gone.
            let _ = news.send(News::Done(said)).await;
        });
    }
}

/// What is typed. The thread ends with the process: a read cannot be called off.
fn terminal_events() -> mpsc::Receiver<TerminalEvent> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}
