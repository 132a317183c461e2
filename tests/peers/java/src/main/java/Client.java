import com.google.gson.Gson;
import com.google.gson.JsonObject;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptors;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.MetadataUtils;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** The grpc-java client of the matrix: told what to do by JSON lines on standard input, as go/client.go is. */
public final class Client {
  private static final String SERVICE = "bentpipe.demo.Satellite";
  private static final int MAX_MESSAGE_BYTES = 64 << 20;

  /** One line of standard input. Bytes travel as base64. */
  private static final class Order {
    String target = "";
    String ca = "";
    String[][] metadata = {};
    double keepalive_s;
    String method = "";
    String[] messages = {};
    double timeout_s;
    int size_bytes;
    int chunk_bytes;
  }

  /** Messages are bytes as they are. */
  private static final class Raw implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] message) {
      return new ByteArrayInputStream(message);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException e) {
        throw Status.INTERNAL.withCause(e).asRuntimeException();
      }
    }
  }

  /** One call: what comes is queued, an end is an entry of its own. */
  private static final class Call extends ClientCall.Listener<byte[]> {
    private final ClientCall<byte[], byte[]> call;
    private final BlockingQueue<Object> came = new LinkedBlockingQueue<>();
    private final Object ready = new Object();

    Call(Channel channel, Order order, MethodType type) {
      MethodDescriptor<byte[], byte[]> method =
          MethodDescriptor.newBuilder(new Raw(), new Raw())
              .setFullMethodName(SERVICE + "/" + order.method)
              .setType(type)
              .build();
      CallOptions options =
          CallOptions.DEFAULT
              .withDeadlineAfter((long) (order.timeout_s * 1e6), TimeUnit.MICROSECONDS)
              .withMaxInboundMessageSize(MAX_MESSAGE_BYTES);
      call = channel.newCall(method, options);
      call.start(this, new Metadata());
      call.request(1);
    }

    @Override
    public void onMessage(byte[] message) {
      came.add(message);
      call.request(1);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      came.add(status);
      onReady();
    }

    @Override
    public void onReady() {
      synchronized (ready) {
        ready.notifyAll();
      }
    }

    /** Sends the one message of a call; its headers may wait for it, so that it is not ready before. */
    void sendOnly(byte[] message) {
      call.sendMessage(message);
      call.halfClose();
    }

    void send(byte[] message) throws InterruptedException {
      synchronized (ready) {
        while (!call.isReady() && !came.stream().anyMatch(each -> each instanceof Status)) {
          ready.wait(100);
        }
      }
      call.sendMessage(message);
    }

    void end() {
      call.halfClose();
    }

    void cancel() {
      call.cancel("as asked for", null);
    }

    /** The next message; null at the end. */
    byte[] next() throws InterruptedException {
      Object one = came.take();
      if (one instanceof byte[]) {
        return (byte[]) one;
      }
      Status status = (Status) one;
      if (!status.isOk()) {
        throw status.asRuntimeException();
      }
      return null;
    }

    byte[] only() throws InterruptedException {
      byte[] answer = next();
      if (answer == null || next() != null) {
        throw Status.INTERNAL.withDescription("not one answer").asRuntimeException();
      }
      return answer;
    }
  }

  private ManagedChannel managed;
  private Channel channel;

  private void open(Order order) throws Exception {
    NettyChannelBuilder builder = NettyChannelBuilder.forTarget("dns:///" + order.target);
    if (order.ca.isEmpty()) {
      builder.usePlaintext();
    } else {
      byte[] ca = order.ca.getBytes(StandardCharsets.US_ASCII);
      builder.sslContext(GrpcSslContexts.forClient().trustManager(new ByteArrayInputStream(ca)).build());
    }
    if (order.keepalive_s > 0) {
      builder.keepAliveTime((long) (order.keepalive_s * 1000), TimeUnit.MILLISECONDS);
      builder.keepAliveTimeout(2, TimeUnit.SECONDS).keepAliveWithoutCalls(true);
    }
    Metadata metadata = new Metadata();
    for (String[] pair : order.metadata) {
      metadata.put(Metadata.Key.of(pair[0], Metadata.ASCII_STRING_MARSHALLER), pair[1]);
    }
    managed = builder.build();
    warmUp();
    channel = ClientInterceptors.intercept(managed, MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  /** Loads what a call needs, and connects: a cold JVM takes longer than the shortest deadline of the tests. */
  private void warmUp() throws Exception {
    ManagedChannel nowhere = NettyChannelBuilder.forTarget("dns:///127.0.0.1:1").usePlaintext().build();
    Order order = new Order();
    order.method = "None";
    order.timeout_s = 5;
    Call call = new Call(nowhere, order, MethodType.UNARY);
    call.sendOnly(new byte[1]);
    try {
      call.only();
    } catch (StatusRuntimeException e) {
      // There is nobody, as was meant.
    }
    nowhere.shutdownNow();
    CountDownLatch connected = new CountDownLatch(1);
    ConnectivityState state = managed.getState(true);
    managed.notifyWhenStateChanged(state, () -> managed.notifyWhenStateChanged(ConnectivityState.CONNECTING, connected::countDown));
    connected.await(5, TimeUnit.SECONDS);
  }

  private List<byte[]> concurrent(Order order, List<byte[]> messages, double cancelAfterS) throws Exception {
    List<Call> calls = new ArrayList<>();
    for (byte[] message : messages) {
      Call call = new Call(channel, order, MethodType.UNARY);
      call.sendOnly(message);
      calls.add(call);
    }
    if (cancelAfterS > 0) {
      Thread.sleep((long) (cancelAfterS * 1000));
      calls.forEach(Call::cancel);
    }
    List<byte[]> answers = new ArrayList<>();
    for (Call call : calls) {
      answers.add(call.only());
    }
    return answers;
  }

  private List<byte[]> upload(Order order, List<byte[]> messages) throws Exception {
    Call call = new Call(channel, order, MethodType.CLIENT_STREAMING);
    for (byte[] message : messages) {
      call.send(message);
    }
    call.end();
    return List.of(call.only());
  }

  private List<byte[]> download(Order order) throws Exception {
    Call call = new Call(channel, order, MethodType.SERVER_STREAMING);
    call.sendOnly(Integer.toString(order.size_bytes).getBytes(StandardCharsets.US_ASCII));
    return digested(call);
  }

  private List<byte[]> chat(Order order, List<byte[]> messages) throws Exception {
    Call call = new Call(channel, order, MethodType.BIDI_STREAMING);
    List<byte[]> answers = new ArrayList<>();
    for (byte[] message : messages) {
      call.send(message);
      answers.add(call.next());
    }
    call.end();
    if (call.next() != null) {
      throw Status.INTERNAL.withDescription("an answer too many").asRuntimeException();
    }
    return answers;
  }

  /** Sends size_bytes up while as many come down; answers the SHA-256 of what was sent and of what came. */
  private List<byte[]> bulk(Order order) throws Exception {
    Call call = new Call(channel, order, MethodType.BIDI_STREAMING);
    MessageDigest sent = MessageDigest.getInstance("SHA-256");
    Thread sender =
        new Thread(
            () -> {
              try {
                for (int at = 0; at < order.size_bytes; at += order.chunk_bytes) {
                  byte[] message = new byte[Math.min(order.chunk_bytes, order.size_bytes - at)];
                  for (int i = 0; i < message.length; i++) {
                    message[i] = (byte) ((long) (at + i) * 31 >> 3);
                  }
                  sent.update(message);
                  call.send(message);
                }
                call.end();
              } catch (InterruptedException e) {
                call.cancel();
              }
            });
    sender.start();
    byte[] came = digested(call).get(0);
    sender.join();
    return List.of(HexFormat.of().formatHex(sent.digest()).getBytes(StandardCharsets.US_ASCII), came);
  }

  /** The SHA-256 of all that comes, and how many bytes it was. */
  private static List<byte[]> digested(Call call) throws Exception {
    MessageDigest digest = MessageDigest.getInstance("SHA-256");
    long size = 0;
    for (byte[] message = call.next(); message != null; message = call.next()) {
      digest.update(message);
      size += message.length;
    }
    return Arrays.asList(
        HexFormat.of().formatHex(digest.digest()).getBytes(StandardCharsets.US_ASCII),
        Long.toString(size).getBytes(StandardCharsets.US_ASCII));
  }

  private List<byte[]> carryOut(String what, Order order) throws Exception {
    List<byte[]> messages = new ArrayList<>();
    for (String text : order.messages) {
      messages.add(Base64.getDecoder().decode(text));
    }
    switch (what) {
      case "open":
        open(order);
        return List.of();
      case "close":
        managed.shutdownNow().awaitTermination(10, TimeUnit.SECONDS);
        return List.of();
      case "concurrent":
        return concurrent(order, messages, 0);
      case "cancel":
        double after = order.timeout_s / 2;
        order.timeout_s += 30; // cancelled it is long before, on a busy machine too
        return concurrent(order, messages, after);
      case "upload":
        return upload(order, messages);
      case "download":
        return download(order);
      case "chat":
        return chat(order, messages);
      case "bulk":
        return bulk(order);
      default:
        throw new IllegalArgumentException("unknown order " + what);
    }
  }

  /** Carries out orders until standard input ends. */
  public static void main(String[] arguments) throws Exception {
    Gson gson = new Gson();
    Client client = new Client();
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      JsonObject order = gson.fromJson(line, JsonObject.class);
      List<String> messages = new ArrayList<>();
      JsonObject answer = new JsonObject();
      answer.addProperty("code", 0);
      answer.addProperty("details", "");
      try {
        for (byte[] message : client.carryOut(order.get("do").getAsString(), gson.fromJson(order, Order.class))) {
          messages.add(Base64.getEncoder().encodeToString(message));
        }
      } catch (Exception e) {
        Status status = Status.fromThrowable(e);
        answer.addProperty("code", status.getCode().value());
        answer.addProperty("details", status.getDescription() == null ? e.toString() : status.getDescription());
      }
      answer.add("messages", gson.toJsonTree(messages));
      System.out.println(gson.toJson(answer));
    }
    System.exit(0);
  }
}
