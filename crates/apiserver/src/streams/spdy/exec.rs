//! Exec and attach over SPDY: each channel is a stream, named by its header `streamtype`.

use bytes::Bytes;
use futures::{Sink, Stream, StreamExt, sink, stream};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Broken, STREAMS_WITHIN, SpdyStream, Writer, session};
use crate::streams::remote::{FromClient, Remote, ToClient, bridge};

/// The versions that are spoken, by the header `X-Stream-Protocol-Version`.
pub(in crate::streams) const PROTOCOLS: [&str; 3] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"];

/// A client's streams for one command.
#[derive(Default)]
struct Channels {
    stdin: Option<SpdyStream>,
    stdout: Option<SpdyStream>,
    stderr: Option<SpdyStream>,
    error: Option<SpdyStream>,
    resize: Option<SpdyStream>,
}

/// Serves one command on the client's bytes; `out` takes the bytes to the client.
pub(in crate::streams) async fn remote(
    protocol: &'static str,
    remote: Remote,
    node: nodeconn::Stream,
    input: impl Stream<Item = Bytes>,
    out: mpsc::Sender<Bytes>,
) {
    let (mut streams, work) = session(input, out);
    let serve = async {
        let collected = tokio::time::timeout(STREAMS_WITHIN, collect(&mut streams, protocol, &remote)).await;
        let Ok(Some(channels)) = collected else { return };
        serve(channels, protocol, &remote, node).await;
    };
    tokio::select! {
        () = serve => {}
        ended = work => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a SPDY connection ended early");
            }
        }
    }
}

/// Waits until all the streams are there that this command needs.
async fn collect(streams: &mut mpsc::Receiver<SpdyStream>, protocol: &str, remote: &Remote) -> Option<Channels> {
    let mut channels = Channels::default();
    let resizes = remote.tty() && protocol != "v2.channel.k8s.io";
    loop {
        let complete = channels.error.is_some()
            && (channels.stdin.is_some() || !remote.stdin())
            && (channels.stdout.is_some() || !remote.stdout)
            && (channels.stderr.is_some() || !remote.stderr)
            && (channels.resize.is_some() || !resizes);
        if complete {
            return Some(channels);
        }
        let stream = streams.recv().await?;
        let place = match stream.header("streamtype") {
            "stdin" => &mut channels.stdin,
            "stdout" => &mut channels.stdout,
            "stderr" => &mut channels.stderr,
            "error" => &mut channels.error,
            "resize" => &mut channels.resize,
            _ => return None,
        };
        *place = Some(stream);
    }
}

async fn serve(channels: Channels, protocol: &'static str, remote: &Remote, node: nodeconn::Stream) {
    let writers = Writers {
        stdout: channels.stdout.as_ref().map(SpdyStream::writer),
        stderr: channels.stderr.as_ref().map(SpdyStream::writer),
        error: channels.error.as_ref().map(SpdyStream::writer),
        status: protocol == "v4.channel.k8s.io",
    };
    let stdin = channels.stdin.into_iter().map(|mut stdin| stream::poll_fn(move |cx| stdin.rx.poll_recv(cx)));
    let stdin = stream::iter(stdin).flatten().map(FromClient::Stdin).chain(stream::iter([FromClient::StdinEof]));
    let resize = channels.resize.into_iter().map(|mut resize| stream::poll_fn(move |cx| resize.rx.poll_recv(cx)));
    let resize = stream::iter(resize).flatten().filter_map(|data| std::future::ready(size(&data)));
    // The end of input is not the end of the client: that shows on the connection.
    let from = stream::select(stdin, resize).chain(stream::pending());
    bridge(remote, node, from, writers.into_sink()).await;
}

/// Where output goes.
struct Writers {
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    error: Option<Writer>,
    /// The end is told as a Status.
    status: bool,
}

impl Writers {
    fn into_sink(self) -> impl Sink<ToClient, Error = Broken> {
        sink::unfold(self, |writers, item: ToClient| async move {
            writers.take(item).await?;
            Ok(writers)
        })
    }

    async fn take(&self, item: ToClient) -> Result<(), Broken> {
        let ended = match item {
            ToClient::Stdout(data) => return write(self.stdout.as_ref(), &data).await,
            ToClient::Stderr(data) => return write(self.stderr.as_ref(), &data).await,
            ToClient::Done(ended) => ended,
        };
        let text = if self.status { ended.to_status().to_string() } else { ended.message() };
        write(self.error.as_ref(), text.as_bytes()).await?;
        for writer in [&self.stdout, &self.stderr, &self.error].into_iter().flatten() {
            writer.finish().await?;
        }
        Ok(())
    }
}

async fn write(writer: Option<&Writer>, data: &[u8]) -> Result<(), Broken> {
    match writer {
        Some(writer) if !data.is_empty() => writer.write(data).await,
        _ => Ok(()),
    }
}

fn size(data: &[u8]) -> Option<FromClient> {
    #[derive(Deserialize)]
    struct Size {
        #[serde(rename = "Width")]
        width: u16,
        #[serde(rename = "Height")]
        height: u16,
    }
    let Size { width, height } = serde_json::from_slice(data).ok()?;
    Some(FromClient::Resize { width, height })
}
