//! The tonic client of the matrix: told what to do by JSON lines on standard input, as go/client.go is.

use std::io::{BufRead, Write};
use std::time::Duration;

use base64::{engine::general_purpose::STANDARD, Engine};
use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio_stream::{iter, wrappers::ReceiverStream, StreamExt};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::metadata::{MetadataKey, MetadataMap};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

const SERVICE: &str = "bentpipe.demo.Satellite";
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// One line of standard input. Bytes travel as base64.
#[derive(Deserialize)]
struct Order {
    #[serde(rename = "do")]
    what: String,
    #[serde(default)]
    target: String,
    #[serde(default)]
    ca: String,
    #[serde(default)]
    metadata: Vec<(String, String)>,
    #[serde(default)]
    keepalive_s: f64,
    #[serde(default)]
    method: String,
    #[serde(default)]
    messages: Vec<String>,
    #[serde(default)]
    timeout_s: f64,
    #[serde(default)]
    size_bytes: usize,
    #[serde(default)]
    chunk_bytes: usize,
}

/// One line of standard output.
#[derive(Serialize)]
struct Answer {
    messages: Vec<String>,
    code: i32,
    details: String,
}

/// Messages are bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, data: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let size = data.remaining();
        Ok(Some(data.copy_to_bytes(size).to_vec()))
    }
}

#[derive(Clone)]
struct Client {
    channel: Channel,
    metadata: MetadataMap,
}

type Messages = Result<Vec<Vec<u8>>, Status>;

impl Client {
    fn open(order: &Order) -> Result<Client, Box<dyn std::error::Error>> {
        let scheme = if order.ca.is_empty() { "http" } else { "https" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", order.target))?;
        if !order.ca.is_empty() {
            let trusted = Certificate::from_pem(&order.ca);
            endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(trusted))?;
        }
        if order.keepalive_s > 0.0 {
            endpoint = endpoint
                .http2_keep_alive_interval(Duration::from_secs_f64(order.keepalive_s))
                .keep_alive_timeout(Duration::from_secs(2))
                .keep_alive_while_idle(true);
        }
        let mut metadata = MetadataMap::new();
        for (key, value) in &order.metadata {
            metadata.append(MetadataKey::from_bytes(key.as_bytes())?, value.parse()?);
        }
        Ok(Client { channel: endpoint.connect_lazy(), metadata })
    }

    /// A service that is ready, the path, and the request with its metadata and deadline.
    async fn calling<T>(&self, order: &Order, message: T) -> Result<(Grpc<Channel>, PathAndQuery, Request<T>), Status> {
        let mut service = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        service.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let path = format!("/{SERVICE}/{}", order.method).parse().expect("a path");
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request.set_timeout(Duration::from_secs_f64(order.timeout_s));
        Ok((service, path, request))
    }

    async fn unary(self, order: std::sync::Arc<Order>, message: Vec<u8>) -> Result<Vec<u8>, Status> {
        let (mut service, path, request) = self.calling(&order, message).await?;
        Ok(service.unary(request, path, Raw).await?.into_inner())
    }

    async fn concurrent(&self, order: Order, messages: Vec<Vec<u8>>) -> Messages {
        let order = std::sync::Arc::new(order);
        let mut calls = JoinSet::new();
        for (number, message) in messages.into_iter().enumerate() {
            let call = self.clone().unary(order.clone(), message);
            calls.spawn(async move { (number, call.await) });
        }
        let mut answers = vec![Vec::new(); calls.len()];
        while let Some(done) = calls.join_next().await {
            let (number, answer) = done.expect("no call panics");
            answers[number] = answer?;
        }
        Ok(answers)
    }

    async fn upload(&self, order: &Order, messages: Vec<Vec<u8>>) -> Messages {
        let (mut service, path, request) = self.calling(order, iter(messages)).await?;
        Ok(vec![service.client_streaming(request, path, Raw).await?.into_inner()])
    }

    async fn download(&self, order: &Order) -> Messages {
        let (mut service, path, request) = self.calling(order, order.size_bytes.to_string().into_bytes()).await?;
        digested(service.server_streaming(request, path, Raw).await?.into_inner()).await
    }

    async fn chat(&self, order: &Order, messages: Vec<Vec<u8>>) -> Messages {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (mut service, path, request) = self.calling(order, ReceiverStream::new(receiver)).await?;
        let ended = |_| Status::unavailable("the stream has ended");
        let mut messages = messages.into_iter();
        // The first goes before the stream is there: a server may say no headers before it.
        sender.send(messages.next().unwrap_or_default()).await.map_err(ended)?;
        let mut stream = service.streaming(request, path, Raw).await?.into_inner();
        let mut answers = Vec::new();
        loop {
            answers.push(stream.message().await?.ok_or_else(|| Status::internal("no answer"))?);
            match messages.next() {
                Some(message) => sender.send(message).await.map_err(ended)?,
                None => break,
            }
        }
        drop(sender);
        match stream.message().await? {
            None => Ok(answers),
            Some(_) => Err(Status::internal("an answer too many")),
        }
    }

    /// Sends `size_bytes` up while as many come down; answers the SHA-256 of what was sent and of what came.
    async fn bulk(&self, order: &Order) -> Messages {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let (size, chunk) = (order.size_bytes, order.chunk_bytes);
        let (mut service, path, request) = self.calling(order, ReceiverStream::new(receiver)).await?;
        let sent = tokio::spawn(async move {
            let mut digest = Sha256::new();
            for at in (0..size).step_by(chunk) {
                let message: Vec<u8> = (at..size.min(at + chunk)).map(|i| (i * 31 >> 3) as u8).collect();
                digest.update(&message);
                if sender.send(message).await.is_err() {
                    break;
                }
            }
            format!("{:x}", digest.finalize()).into_bytes()
        });
        let came = digested(service.streaming(request, path, Raw).await?.into_inner()).await?;
        Ok(vec![sent.await.expect("the sender does not panic"), came[0].clone()])
    }
}

/// The SHA-256 of all that comes, and how many bytes it was.
async fn digested(mut stream: Streaming<Vec<u8>>) -> Messages {
    let (mut digest, mut size) = (Sha256::new(), 0);
    while let Some(message) = stream.next().await {
        let message = message?;
        size += message.len();
        digest.update(&message);
    }
    Ok(vec![format!("{:x}", digest.finalize()).into_bytes(), size.to_string().into_bytes()])
}

async fn carry_out(client: &mut Option<Client>, order: Order) -> Messages {
    let messages: Vec<Vec<u8>> = order.messages.iter().map(|text| STANDARD.decode(text).expect("base64")).collect();
    if order.what == "open" {
        *client = Some(Client::open(&order).map_err(|error| Status::internal(error.to_string()))?);
        return Ok(Vec::new());
    }
    if order.what == "close" {
        *client = None;
        return Ok(Vec::new());
    }
    let client = client.as_ref().expect("open comes first");
    match order.what.as_str() {
        "concurrent" => client.concurrent(order, messages).await,
        "upload" => client.upload(&order, messages).await,
        "download" => client.download(&order).await,
        "chat" => client.chat(&order, messages).await,
        "bulk" => client.bulk(&order).await,
        "cancel" => {
            // A future that is dropped is a call that is cancelled: that is tonic's only way.
            let given_up_after = Duration::from_secs_f64(order.timeout_s / 2.0);
            match tokio::time::timeout(given_up_after, client.concurrent(order, messages)).await {
                Ok(ended) => ended,
                Err(_) => Err(Status::cancelled("dropped")),
            }
        }
        other => Err(Status::internal(format!("unknown order {other}"))),
    }
}

#[tokio::main]
async fn main() {
    let mut client = None;
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line.expect("a line")).expect("an order");
        let answer = match carry_out(&mut client, order).await {
            Ok(messages) => Answer {
                messages: messages.iter().map(|message| STANDARD.encode(message)).collect(),
                code: 0,
                details: String::new(),
            },
            Err(status) => Answer {
                messages: Vec::new(),
                // tonic (0.14) says CANCELLED of its own deadline, in these words.
                code: match (status.code(), status.message()) {
                    (Code::Cancelled, "Timeout expired") => Code::DeadlineExceeded,
                    (code, _) => code,
                } as i32,
                details: status.message().to_string(),
            },
        };
        println!("{}", serde_json::to_string(&answer).expect("JSON"));
        std::io::stdout().flush().expect("a reader");
    }
}
