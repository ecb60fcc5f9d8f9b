//! The page, in a real browser: signed in, looked at, used with keys, and signed out.

use serde_json::Value;

use crate::browser::Browser;
use crate::harness::{Instance, eventually, example, own_network, statefuld};

/// How often the page is opened until all of it has come.
const OPENINGS: u32 = 8;

/// The address that `statefuld page` prints.
fn address(instance: &Instance) -> String {
    let output = statefuld().args(["page", "-o", "json", "--data-dir"]).arg(instance.data()).output().expect("it runs");
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    answer["address"].as_str().expect("an address").to_owned()
}

/// Texts with less contrast than 4.5 to 1 against what they are on, and what can be used without a name.
const AUDIT: &str = r#"(() => {
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > .99) return color;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walker.nextNode());) {
    const node = text.parentElement;
    if (!text.textContent.trim() || !node.checkVisibility() || node.closest('.unseen, .skip, noscript, option, :disabled')) continue;
    const [a, b] = [luminance(parse(getComputedStyle(node).color)), luminance(ground(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${text.textContent.trim().slice(0, 40)}`);
  }
  return bad;
})()"#;

/// Opens the page as its command says; where it is, and the address that was opened. A browser drops what is under way when
/// interfaces change, as those of new pods still do for a while: a page whose parts did not come is opened once more, as a
/// person would.
fn sign_in(browser: &mut Browser, instance: &Instance) -> (String, String) {
    for _ in 0..OPENINGS {
        let address = address(instance);
        let origin = address.split("/ui/").next().expect("the page's place").to_owned();
        assert!(address.starts_with(&format!("{origin}/ui/#ticket=")), "{address}");
        browser.open(&address);
        if browser.soon("document.querySelector('.count') !== null") {
            return (origin, address);
        }
    }
    panic!("the page does not come, though it was opened {OPENINGS} times");
}

#[test]
fn e2e_the_page_shows_what_is_and_changes_it_after_a_question() {
    // A browser drops what is under way when the machine's interfaces change, as other tests' pods make them do.
    own_network();
    let mut instance = Instance::new();
    instance.up(&[example("journal.yaml")]);
    let mut browser = Browser::start();
    browser.look("light", 1440);
    let (origin, address) = sign_in(&mut browser, &instance);
    browser.until("document.querySelector('.count')?.textContent === '3 of 3 Ready'");
    assert_eq!(browser.eval("location.href"), format!("{origin}/ui/"), "the ticket is not in the address any more");
    assert_eq!(browser.eval("document.cookie"), "");
    browser.until("document.getElementById('user').textContent === 'kubernetes-admin'");
    browser.until("/^[0-9.]+ .?i?B of /.test(document.querySelector('.fill')?.innerText)");

    with_keys(&mut browser, &instance);
    says_why_as_the_command_does(&mut browser, &instance);
    is_readable(&mut browser);

    // Nothing came from elsewhere, nothing was refused by the page's own rules, and nothing went wrong.
    for request in browser.take_told("Network.requestWillBeSent") {
        let url = request["params"]["request"]["url"].as_str().expect("an address").to_owned();
        assert!(url.starts_with(&origin), "{url}");
    }
    let wrong = browser.take_told("Runtime.exceptionThrown");
    assert!(wrong.is_empty(), "{wrong:#?}");
    let logged = browser.take_told("Log.entryAdded");
    // Pods that come and go change the machine's interfaces, for which a browser drops what is under way; the page asks again.
    let serious = |told: &&Value| {
        let entry = &told["params"]["entry"];
        entry["level"] == "error" && entry["source"] != "network"
    };
    assert_eq!(logged.iter().find(serious), None);

    signs_out(&mut browser, &address);
    shows_a_visitor_no_more_than_they_may_see(&mut browser, &instance);
}

/// Moves among the pods, looks at one, scales the set and stops a pod, all without a mouse.
fn with_keys(browser: &mut Browser, instance: &Instance) {
    browser.eval("document.querySelector('button.pod').focus()");
    browser.press("ArrowDown");
    browser.until("document.activeElement.dataset.pod === 'journal-1'");
    browser.press("Enter");
    browser.until("document.querySelector('#detail h2')?.textContent === 'journal-1'");
    browser.until("document.querySelector('pre.log').textContent.includes('listening on')");
    browser.until("document.querySelector('.events').textContent.includes('Started')");
    browser.picture("detail-light");
    browser.press("Escape");
    browser.until("document.getElementById('detail').hidden");
    // The focus comes back.
    browser.until("document.activeElement.dataset.pod === 'journal-1'");

    browser.press("s");
    browser.until("document.activeElement.type === 'number'");
    browser.picture("scale-light");
    browser.press("Escape");
    browser.until("!document.getElementById('ask').open");
    assert_eq!(instance.get("statefulset", "journal")["spec"]["replicas"], 3, "nothing happens without a yes");
    browser.press("s");
    browser.until("document.activeElement.type === 'number'");
    browser.eval("document.activeElement.value = 2");
    browser.press("Enter");
    browser.until("document.querySelector('.count').textContent === '2 of 2 Ready'");
    assert_eq!(instance.get("statefulset", "journal")["spec"]["replicas"], 2);

    let before = instance.get("pod", "journal-1")["metadata"]["uid"].clone();
    browser.press("d");
    browser.until("document.getElementById('ask').open");
    // Enter by mistake does no harm.
    browser.until("document.activeElement.textContent === 'Cancel'");
    browser.press("Tab");
    browser.press("Enter");
    instance.ready("journal-1", before.as_str());

    let template = instance.get("statefulset", "journal")["spec"]["template"].clone();
    browser.press("r");
    browser.until("document.getElementById('ask').open");
    says_yes(browser);
    browser.until(
        "[...document.querySelectorAll('.acts button')].some((b) => b.innerText.startsWith('Undo') && !b.disabled)",
    );
    browser.until(
        "document.querySelector('.rollout').hidden && document.querySelector('.count').textContent === '2 of 2 Ready'",
    );
    assert_ne!(instance.get("statefulset", "journal")["spec"]["template"], template, "it says when it was restarted");
    browser.eval("document.querySelector('button.pod').focus()");
    browser.press("u");
    browser.until("document.getElementById('ask').open");
    says_yes(browser);
    eventually("the template is the earlier one", || {
        (instance.get("statefulset", "journal")["spec"]["template"] == template).then_some(())
    });
}

/// Says yes to a question. Where the answer to the page's request got lost, the dialog says so and stays; what was asked for
/// may have been done all the same, and is looked for by who calls this.
fn says_yes(browser: &mut Browser) {
    browser.eval("document.querySelector('#ask [type=submit]').click()");
    browser.until("!document.getElementById('ask').open || !document.querySelector('#ask .error').hidden");
    browser.eval("document.getElementById('ask').close()");
}

/// Breaks the set; the sentence beside the pod is the one of `statefuld why`.
fn says_why_as_the_command_does(browser: &mut Browser, instance: &Instance) {
    instance.kubectl(&["set", "image", "statefulset/journal", "journal=statefuld.local/nosuch:1"]);
    browser.until("document.querySelector('tbody.waits .why p')?.textContent.includes('nosuch')");
    let output = statefuld().args(["why", "-o", "json", "--data-dir"]).arg(instance.data()).output().expect("it runs");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let told: Vec<String> = answer["waiting"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|finding| timeless(finding["sentence"].as_str().expect("a sentence")))
        .collect();
    eventually("page and command say the same", || {
        let shown = browser.eval("document.querySelector('tbody.waits .why p')?.textContent ?? ''");
        told.contains(&timeless(shown.as_str().expect("text"))).then_some(())
    });
}

/// A sentence without how long something has lasted.
fn timeless(sentence: &str) -> String {
    regex::Regex::new(r"\b(\d+[dhms])+\b|\d+ times|once").expect("a pattern").replace_all(sentence, "…").into_owned()
}

/// In both colour schemes and on a narrow screen, with the details open.
fn is_readable(browser: &mut Browser) {
    browser.eval("document.querySelector('button.pod').click()");
    for (scheme, width) in [("light", 1440), ("dark", 1440), ("dark", 390), ("light", 390)] {
        browser.look(scheme, width);
        browser.picture(&format!("{scheme}-{width}-detail"));
        assert_eq!(browser.eval(AUDIT), serde_json::json!([]), "{scheme} {width}");
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true, "{scheme} {width} fits");
    }
    let tree = browser.send("Accessibility.getFullAXTree", serde_json::json!({}));
    let used = ["button", "textbox", "combobox", "spinbutton", "meter", "progressbar", "dialog"];
    for node in tree["nodes"].as_array().expect("nodes").iter().filter(|node| node["ignored"] != true) {
        if used.iter().any(|role| node["role"]["value"] == *role) {
            assert!(node["name"]["value"].as_str().is_some_and(|name| !name.is_empty()), "no name: {node:#}");
        }
    }
    browser.press("Escape");
    for (scheme, width) in [("light", 390), ("dark", 1440), ("light", 1440)] {
        browser.look(scheme, width);
        browser.picture(&format!("{scheme}-{width}"));
    }
}

/// An address is good once; signing out ends the session at the server.
fn signs_out(browser: &mut Browser, address: &str) {
    let token = browser.eval("JSON.parse(sessionStorage.getItem('statefuld.session')).token");
    browser.eval("document.getElementById('out').click()");
    browser.until("document.querySelector('.sign-in') !== null");
    browser.picture("sign-in-light");
    assert_eq!(browser.eval("sessionStorage.length"), 0);
    let asked = format!(
        "fetch('/api/v1/namespaces', {{headers: {{Authorization: 'Bearer {}'}}}}).then((answer) => answer.status)",
        token.as_str().expect("a token")
    );
    assert_eq!(browser.eval(&asked), 401);
    browser.new_page();
    browser.open(address);
    browser.until("document.querySelector('.sign-in .error')?.textContent.includes('used already')");
}

/// With a token of an account that may only read: what it may not do is refused in the server's words.
fn shows_a_visitor_no_more_than_they_may_see(browser: &mut Browser, instance: &Instance) {
    instance.kubectl(&["create", "serviceaccount", "visitor"]);
    let binding = ["create", "rolebinding", "visitor", "--clusterrole=view", "--serviceaccount=default:visitor"];
    instance.kubectl(&binding);
    let token = instance.kubectl(&["create", "token", "visitor"]);
    browser.eval(&format!("document.querySelector('.sign-in input').value = '{}'", token.trim()));
    browser.eval("document.querySelector('.sign-in button').click()");
    browser.until("document.querySelector('.count')?.textContent === '1 of 2 Ready'");
    browser.until("document.getElementById('user').textContent === 'system:serviceaccount:default:visitor'");
    assert_eq!(
        browser.eval("document.querySelector('.fill').innerText"),
        "100 MiB",
        "how full it is, is not theirs to see"
    );
    browser.eval("document.querySelector('button.pod').focus()");
    browser.press("r");
    browser.until("document.getElementById('ask').open");
    browser.eval("document.querySelector('#ask [type=submit]').click()");
    browser.until("document.querySelector('#ask .error').textContent.includes('cannot patch resource')");
    browser.press("Escape");
}
