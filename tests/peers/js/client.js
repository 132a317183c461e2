// The @grpc/grpc-js client of the matrix: told what to do by JSON lines on standard input, as go/client.go is.
"use strict";

const { createHash } = require("node:crypto");
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");

const SERVICE = "bentpipe.demo.Satellite";
const raw = (bytes) => bytes;

let channel;
let metadata;

function open(order) {
  metadata = new grpc.Metadata();
  for (const [key, value] of order.metadata) metadata.add(key, value);
  const credentials = order.ca
    ? grpc.credentials.createSsl(Buffer.from(order.ca))
    : grpc.credentials.createInsecure();
  const options = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.max_receive_message_length": 64 << 20,
    "grpc-node.max_session_memory": 64,
  };
  if (order.keepalive_s) options["grpc.keepalive_time_ms"] = order.keepalive_s * 1000;
  channel = new grpc.Client(order.target, credentials, options);
}

function calling(order) {
  return { path: `/${SERVICE}/${order.method}`, options: { deadline: Date.now() + order.timeout_s * 1000 } };
}

function unary(order, message, started = () => {}) {
  const { path, options } = calling(order);
  return new Promise((resolve, reject) => {
    started(
      channel.makeUnaryRequest(path, raw, raw, message, metadata, options, (error, answer) =>
        error ? reject(error) : resolve(answer),
      ),
    );
  });
}

function upload(order) {
  const { path, options } = calling(order);
  return new Promise((resolve, reject) => {
    const call = channel.makeClientStreamRequest(path, raw, raw, metadata, options, (error, answer) =>
      error ? reject(error) : resolve([answer]),
    );
    for (const message of order.messages) call.write(message);
    call.end();
  });
}

function digested(stream, resolve, reject, first = []) {
  const digest = createHash("sha256");
  let size = 0;
  stream.on("data", (message) => {
    digest.update(message);
    size += message.length;
  });
  stream.on("error", reject);
  stream.on("end", () => resolve([...first, digest.digest("hex"), String(size)].map((text) => Buffer.from(text))));
}

function download(order) {
  const { path, options } = calling(order);
  const request = Buffer.from(String(order.size_bytes));
  return new Promise((resolve, reject) => {
    digested(channel.makeServerStreamRequest(path, raw, raw, request, metadata, options), resolve, reject);
  });
}

function chat(order) {
  const { path, options } = calling(order);
  const call = channel.makeBidiStreamRequest(path, raw, raw, metadata, options);
  const answers = [];
  return new Promise((resolve, reject) => {
    call.on("data", (answer) => {
      answers.push(answer);
      if (answers.length === order.messages.length) call.end();
      else call.write(order.messages[answers.length]);
    });
    call.on("error", reject);
    call.on("end", () => resolve(answers));
    call.write(order.messages[0]);
  });
}

// Sends size_bytes up while as many come down; answers the SHA-256 of what was sent and of what came.
function bulk(order) {
  const { path, options } = calling(order);
  const call = channel.makeBidiStreamRequest(path, raw, raw, metadata, options);
  const sent = createHash("sha256");
  const pattern = Buffer.from(Array.from({ length: order.chunk_bytes }, (_, i) => ((i * 31) >> 3) & 0xff));
  let left = order.size_bytes;
  return new Promise((resolve, reject) => {
    digested(call, ([came]) => resolve([Buffer.from(sent.digest("hex")), came]), reject);
    const more = () => {
      while (left > 0) {
        const message = pattern.subarray(0, Math.min(left, pattern.length));
        left -= message.length;
        sent.update(message);
        if (!call.write(message)) {
          call.once("drain", more);
          return;
        }
      }
      call.end();
    };
    more();
  });
}

async function carryOut(order) {
  switch (order.do) {
    case "open":
      return open(order);
    case "close":
      return channel.close();
    case "concurrent":
      return Promise.all(order.messages.map((message) => unary(order, message)));
    case "upload":
      return upload(order);
    case "download":
      return download(order);
    case "chat":
      return chat(order);
    case "bulk":
      return bulk(order);
    case "cancel":
      return unary(order, order.messages[0], (call) => setTimeout(() => call.cancel(), order.timeout_s * 500));
    default:
      throw new Error(`unknown order ${order.do}`);
  }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    order.messages = (order.messages || []).map((text) => Buffer.from(text, "base64"));
    let done;
    try {
      const messages = (await carryOut(order)) || [];
      done = { messages: messages.map((message) => message.toString("base64")), code: 0, details: "" };
    } catch (error) {
      done = { messages: [], code: error.code || 2, details: error.details || String(error) };
    }
    process.stdout.write(JSON.stringify(done) + "\n");
  }
}

main().then(() => process.exit(0));
