//! `statefuld image`: the images of this machine, whether the daemon runs or not.
//!
//! The store is shared with the daemon by its lock ([`image::store`]), so these commands ask nobody.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use image::registry::auth::Keyring;
use image::registry::{Puller, settings};
use image::store::Removed;
use image::{Digest, Image, Limits, Reference, Step, Store};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use node::agent::images;
use serde_json::{Value, json};

use crate::cli::{Instance, Output};
use crate::say;

/// `statefuld image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// What is to be done
    #[command(subcommand)]
    pub what: What,
}

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Take images from an archive (docker save, OCI) or an OCI layout directory
    Import(Import),
    /// Fetch an image from its registry
    Pull(Pull),
    /// List the images that are there
    List(List),
    /// Remove images by their names
    Remove(Remove),
    /// Remove all images that no pod uses
    Prune(Prune),
}

/// `statefuld image import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The archive, compressed or not, or the directory
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// What to call the image; needed where it has no name of its own
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld image pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// Which: a name with its tag, or with its digest
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Credentials, as Docker's config.json has them
    #[arg(long, value_name = "FILE")]
    pub auth_file: Option<PathBuf>,

    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld image list`.
#[derive(Debug, Args)]
pub struct List {
    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld image remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// Which: a name with its tag, or with its digest
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,

    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld image prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Runs the command.
pub async fn run(args: ImageArgs) -> Result<ExitCode> {
    match args.what {
        What::Pull(args) => pull(&args).await,
        What::Import(args) => import(&args),
        What::List(args) => list(&args),
        What::Remove(args) => remove(&args),
        What::Prune(args) => prune(&args),
    }
}

/// The images of one instance.
struct Place {
    store: Store,
    pods: PathBuf,
}

impl Place {
    fn open(instance: &Instance) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("images belong to root; run this with sudo");
        }
        let node = instance.data_dir.join("node");
        std::fs::create_dir_all(&node).with_context(|| format!("{} cannot be made", node.display()))?;
        Ok(Self { store: Store::open(&node.join("images"), Ambient::system())?, pods: node.join("pods") })
    }

    fn in_use(&self) -> Result<std::collections::BTreeSet<Digest>, image::store::StoreError> {
        images::in_use(&self.pods)
    }
}

fn import(args: &Import) -> Result<ExitCode> {
    let place = Place::open(&args.instance)?;
    let name = args.name.as_deref().map(parse).transpose()?;
    let bars = Bars::new(args.output);
    let found = image::import::import(&place.store, &args.path, name.as_ref(), Limits::default(), &|s| bars.step(s));
    let found = found.with_context(|| format!("{} cannot be imported", args.path.display()))?;
    print_images(&found, args.output, &place);
    Ok(ExitCode::SUCCESS)
}

async fn pull(args: &Pull) -> Result<ExitCode> {
    let place = Place::open(&args.instance)?;
    let name = parse(&args.name)?;
    let mut keyring = Keyring::default();
    if let Some(path) = &args.auth_file {
        let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        keyring.add_config_json(&text).with_context(|| format!("{} cannot be used", path.display()))?;
    }
    let bars = Bars::new(args.output);
    let settings = args.instance.data_dir.join(settings::FILE);
    let puller = Puller::new(Arc::new(place.store.clone()), &settings, Ambient::system());
    let pulled = puller.pull(&name, &keyring, &|step| bars.step(step)).await;
    let pulled = pulled.with_context(|| format!("{name} cannot be pulled"))?;
    print_images(&[pulled.image], args.output, &place);
    Ok(ExitCode::SUCCESS)
}

fn list(args: &List) -> Result<ExitCode> {
    let place = Place::open(&args.instance)?;
    print_images(&place.store.images()?, args.output, &place);
    Ok(ExitCode::SUCCESS)
}

fn remove(args: &Remove) -> Result<ExitCode> {
    let place = Place::open(&args.instance)?;
    let mut all = Removed::default();
    for text in &args.names {
        let name = parse(text)?;
        let Some(removed) = place.store.remove(&name, || place.in_use())? else {
            bail!("there is no image {name}; `statefuld image list` shows those that are there");
        };
        all.images.extend(removed.images);
        all.bytes += removed.bytes;
    }
    print_removed(&all, args.output);
    Ok(ExitCode::SUCCESS)
}

fn prune(args: &Prune) -> Result<ExitCode> {
    let place = Place::open(&args.instance)?;
    let unused = |all: &[Image], used: &std::collections::BTreeSet<Digest>| {
        all.iter().map(|i| i.id).filter(|id| !used.contains(id)).collect()
    };
    print_removed(&place.store.prune(|| place.in_use(), unused)?, args.output);
    Ok(ExitCode::SUCCESS)
}

fn parse(text: &str) -> Result<Reference> {
    Reference::parse(text).with_context(|| format!("{text:?} is no name of an image"))
}

fn print_images(images: &[Image], output: Output, place: &Place) {
    let used = place.in_use().unwrap_or_default();
    if output == Output::Json {
        let items: Vec<Value> = images.iter().map(|image| as_json(image, used.contains(&image.id))).collect();
        return say::print(json!({"images": items}));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["IMAGE", "ID", "SIZE", "LAYERS", "IN USE"]);
    for image in images {
        let mut names: Vec<&str> = image.names.iter().map(String::as_str).filter(|n| !n.contains('@')).collect();
        if names.is_empty() {
            names = image.names.iter().map(String::as_str).collect();
        }
        let in_use = if used.contains(&image.id) { "yes" } else { "no" };
        table.add_row([
            names.join("\n"),
            image.id.hex()[..12].to_owned(),
            HumanBytes(image.size).to_string(),
            image.layers.len().to_string(),
            in_use.to_owned(),
        ]);
    }
    say::print(table.trim_fmt());
}

fn as_json(image: &Image, in_use: bool) -> Value {
    json!({
        "id": image.id, "names": image.names, "sizeBytes": image.size, "layers": image.layers.len(),
        "created": image.created, "used": image.used, "inUse": in_use,
    })
}

fn print_removed(removed: &Removed, output: Output) {
    if output == Output::Json {
        return say::print(json!({"removed": removed.images, "freedBytes": removed.bytes}));
    }
    for name in &removed.images {
        say::print(format_args!("removed {name}"));
    }
    say::print(format_args!("{} freed", HumanBytes(removed.bytes)));
}

/// What happens to each layer: bars for people who watch, lines for a log, nothing for programs.
struct Bars {
    multi: Option<MultiProgress>,
    silent: bool,
    bars: Mutex<BTreeMap<Digest, ProgressBar>>,
}

impl Bars {
    fn new(output: Output) -> Self {
        let watched = std::io::stderr().is_terminal() && output == Output::Table;
        Self { multi: watched.then(MultiProgress::new), silent: output == Output::Json, bars: Mutex::default() }
    }

    fn step(&self, step: &Step) {
        let (layer, bytes, words) = match step {
            Step::Present(layer) => (layer, None, "is there already"),
            Step::Fetched { layer, bytes, total } => (layer, Some((*bytes, *total)), "is fetched"),
            Step::Unpacking(layer) => (layer, None, "is unpacked"),
            Step::Unpacked(layer) => (layer, None, "is ready"),
        };
        let short = &layer.hex()[..12];
        let Some(multi) = &self.multi else {
            // Every chunk that arrives would be too many lines.
            if !self.silent && bytes.is_none_or(|(bytes, total)| bytes == total) {
                say::note(format_args!("layer {short} {words}"));
            }
            return;
        };
        let mut bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bar = bars.entry(*layer).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes:>10}/{total_bytes:<10} {msg}");
            let bar = multi.add(ProgressBar::new(0));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar.with_prefix(short.to_owned())
        });
        if let Some((bytes, total)) = bytes {
            bar.set_length(total);
            bar.set_position(bytes);
        }
        bar.set_message(words);
        if matches!(step, Step::Unpacked(_) | Step::Present(_)) {
            bar.finish();
        }
    }
}
