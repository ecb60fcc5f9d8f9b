//! A real browser for a test: Chromium without a window, told what to do by its DevTools protocol.
//!
//! <https://chromedevtools.github.io/devtools-protocol/>

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use crate::harness::eventually;

/// Looks at a page, a tenth of a second apart, before it is opened again.
const LOOKS: u32 = 150;

/// One browser with one page. Dropping it ends it.
pub struct Browser {
    child: Child,
    _profile: tempfile::TempDir,
    socket: WebSocket<TcpStream>,
    /// The page that commands are about.
    session: Option<String>,
    last: u64,
    /// What the page told since it was looked at last.
    told: VecDeque<Value>,
}

impl Browser {
    /// Starts one that finds no name on any network.
    pub fn start() -> Self {
        let profile = tempfile::tempdir().expect("a folder");
        let mut child = Command::new("chromium-headless-shell")
            .args(["--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"])
            .args(["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("chromium-headless-shell runs; `cargo xtask test` installs it");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let address = lines.find_map(|line| line.ok()?.strip_prefix("DevTools listening on ").map(str::to_owned));
        let address = address.expect("it says where it listens");
        // What it says further is of no interest, but must be read.
        std::thread::spawn(move || lines.for_each(drop));
        let place = address.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).expect("an address");
        let stream = TcpStream::connect(place).expect("it listens");
        stream.set_read_timeout(Some(crate::harness::PATIENCE)).expect("a limit");
        let (socket, _) = tungstenite::client(address.as_str(), stream).expect("it speaks");
        let mut browser = Self { child, _profile: profile, socket, session: None, last: 0, told: VecDeque::new() };
        browser.new_page();
        browser
    }

    /// Goes on with a page that knows nothing of the ones before.
    pub fn new_page(&mut self) {
        self.session = None;
        let context = self.send("Target.createBrowserContext", json!({}))["browserContextId"].clone();
        let target = self.send("Target.createTarget", json!({"url": "about:blank", "browserContextId": context}));
        let attached = self.send("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            self.send(&format!("{domain}.enable"), json!({}));
        }
        // Each instance is its own authority, which no browser knows.
        self.send("Security.setIgnoreCertificateErrors", json!({"ignore": true}));
    }

    /// Sends a command; its result.
    pub fn send(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut command = json!({"id": self.last, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(command.to_string())).expect("the browser lives");
        loop {
            let Message::Text(text) = self.socket.read().expect("the browser answers") else { continue };
            let message: Value = serde_json::from_str(&text).expect("JSON");
            if message["id"] == self.last {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.told.push_back(message);
        }
    }

    /// Opens an address.
    pub fn open(&mut self, address: &str) {
        self.send("Page.navigate", json!({"url": address}));
    }

    /// The value of an expression in the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.send("Runtime.evaluate", asked);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Whether an expression becomes true within what a person waits before trying again.
    pub fn soon(&mut self, expression: &str) -> bool {
        (0..LOOKS).any(|_| {
            let holds = self.eval(expression) == true;
            if !holds {
                // A pause between two looks, not a synchronisation.
                std::thread::park_timeout(Duration::from_millis(100));
            }
            holds
        })
    }

    /// Waits until an expression is true.
    pub fn until(&mut self, expression: &str) {
        let mut text = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(expression, || {
                text = self.eval("document.body?.innerText ?? ''").as_str().unwrap_or_default().to_owned();
                (self.eval(expression) == true).then_some(())
            });
        }));
        assert!(found.is_ok(), "never true: {expression}; the page shows:\n{text}");
    }

    /// Presses a key, such as `Enter`, `ArrowDown` or `s`.
    pub fn press(&mut self, key: &str) {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            "Backspace" => 8,
            "ArrowUp" => 38,
            "ArrowDown" => 40,
            letter => u32::from(letter.to_ascii_uppercase().as_bytes()[0]),
        };
        let mut event = json!({"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code});
        match key {
            "Enter" => event["text"] = "\r".into(),
            letter if letter.len() == 1 => event["text"] = letter.into(),
            _ => {}
        }
        self.send("Input.dispatchKeyEvent", event.clone());
        event["type"] = "keyUp".into();
        self.send("Input.dispatchKeyEvent", event);
    }

    /// The page in a colour scheme, `light` or `dark`, and so many pixels wide.
    pub fn look(&mut self, scheme: &str, width: u32) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.send(
            "Emulation.setEmulatedMedia",
            json!({"features": [feature, {"name": "prefers-reduced-motion", "value": "reduce"}]}),
        );
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.send("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Writes a picture of the page where `STATEFULD_PICTURES` names a folder, for people to look at.
    pub fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("STATEFULD_PICTURES") else { return };
        let shot = self.send("Page.captureScreenshot", json!({"format": "png"}));
        let text = shot["data"].as_str().expect("a picture");
        let path = std::path::Path::new(&folder).join(format!("{name}.png"));
        let decoded = Command::new("base64")
            .arg("-d")
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(path).expect("a file"))
            .spawn();
        let mut decoded = decoded.expect("base64 runs");
        std::io::Write::write_all(&mut decoded.stdin.take().expect("a pipe"), text.as_bytes()).expect("written");
        decoded.wait().expect("it ends");
    }

    /// What the page told of that kind since the last call of anything of this kind.
    pub fn take_told(&mut self, method: &str) -> Vec<Value> {
        let (of_kind, others) = std::mem::take(&mut self.told).into_iter().partition(|told| told["method"] == method);
        self.told = others;
        Vec::from(of_kind)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // What was started is a script; the browser and its helpers are its children, in a group of their own.
        if let Some(group) = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0)) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
