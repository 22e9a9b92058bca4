/*
 * A load client for event streams. It opens N connections, counts the events by a marker in their
 * data ("~T" and 16 decimal digits: CLOCK_MONOTONIC in ns at the time of the publish), and keeps a
 * histogram of the latencies. The commands come from stdin, the answers are lines of JSON.
 *
 *   cc -O2 -o client client.c
 *   ./client -p PORT [options]
 *     -u /listen   path
 *     -n 1000      number of connections
 *     -w 200       maximum number of connections that are connecting at the same time
 *     -g GROUPS    connection i requests PATH/(i mod GROUPS)
 *     -e EVENTS    a connection counts as connected when it has received this number of events
 *     -H HEADER    additional header, "Name: value"; may be repeated
 *     -z           stop reading after the response headers
 *     -S           sleep in epoll_wait instead of spinning, for a machine with one CPU
 *   stdin:
 *     start EXPECTED TIMEOUT_MS   count until EXPECTED events have arrived, then wait for a moment
 *                                 to detect an event too many
 *     quit
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MARKER_LENGTH 18 /* "~T" and 16 digits */

#define CONNECT_TIMEOUT_NS 120000000000ull
#define SETTLE_NS 20000000ull /* time in which an event too many is detected */

#define BUCKETS_PER_POWER 64
#define BUCKET_COUNT (64 * BUCKETS_PER_POWER)

#define STDIN_ID 0xffffffffu /* stdin in epoll; any other id is the index of a connection */

enum state { CONNECTING, REQUESTED, STREAMING };

/* The position in the body: not chunked, or in a part of a chunk:
 *
 *   1a;extension CRLF  ...data...  CRLF
 *   SIZE EXTENSION     DATA        DATA_END
 */
enum framing { UNFRAMED, SIZE, EXTENSION, DATA, DATA_END };

struct conn {
  int fd;
  uint8_t state, framing;
  uint8_t partial_length; /* number of bytes in `partial` */
  char partial[MARKER_LENGTH]; /* the start of a marker that is not complete yet */
  uint32_t events;
  uint32_t chunk_left; /* bytes until the end of the chunk */
};

/* Options. */
static int conn_count = 1000, port = 0, group_count = 0, max_connecting = 200;
static int spins = 1, stops_reading = 0;
static uint32_t required_events = 0;
static const char *path = "/listen";
static char extra_headers[4096];

/* State. */
static struct conn *conns;
static int epoll_fd, ready_count, failed_count, closed_count;
static char buffer[1 << 18];

/* The counters of a run. */
static uint64_t events, bytes, reads, max_latency, first_receive, last_receive;
static uint64_t histogram[BUCKET_COUNT]; /* logarithmic, in ns */

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Each power of two has 64 buckets, so the error of a percentile is below 2 %. */
static void record_latency(uint64_t ns) {
  if (ns > max_latency) max_latency = ns;
  int bucket;
  if (ns < BUCKETS_PER_POWER) {
    bucket = (int)ns;
  } else {
    int exponent = 63 - __builtin_clzll(ns);
    bucket = (exponent - 5) * BUCKETS_PER_POWER + (int)((ns >> (exponent - 6)) & 63);
  }
  histogram[bucket < BUCKET_COUNT ? bucket : BUCKET_COUNT - 1]++;
}

/* Returns a percentile of the latencies in microseconds, or -1 without events. */
static double percentile(double part) {
  uint64_t total = 0;
  for (int i = 0; i < BUCKET_COUNT; i++) total += histogram[i];
  if (!total) return -1;
  uint64_t rank = (uint64_t)(part * (double)total), count = 0;
  for (int i = 0; i < BUCKET_COUNT; i++) {
    count += histogram[i];
    if (count <= rank) continue;
    if (i < BUCKETS_PER_POWER) return i / 1e3;
    int exponent = i / BUCKETS_PER_POWER + 5;
    uint64_t low = (1ull << exponent) + ((uint64_t)(i & 63) << (exponent - 6));
    return (double)low / 1e3;
  }
  return max_latency / 1e3;
}

/* Counts the event of a complete marker. */
static void count_event(struct conn *c, const char *marker, uint64_t time) {
  uint64_t published = 0;
  for (const char *digit = marker + 2; digit < marker + MARKER_LENGTH; digit++) {
    published = published * 10 + (uint64_t)(*digit - '0');
  }
  events++;
  c->events++;
  record_latency(time - published);
}

static void start_conn(int index) {
  struct conn *c = &conns[index];
  memset(c, 0, sizeof *c);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    perror("socket");
    exit(2);
  }
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  c->fd = fd;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
    perror("connect");
    exit(2);
  }
  struct epoll_event interest = {.events = EPOLLOUT, .data.u32 = (uint32_t)index};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &interest);
}

/* Finds the markers in a part of the body. A marker may be split over two parts. */
static void scan(struct conn *c, const char *part, size_t length, uint64_t time) {
  const char *end = part + length, *p = part;
  if (c->partial_length) {
    size_t missing = MARKER_LENGTH - c->partial_length;
    size_t taken = length < missing ? length : missing;
    memcpy(c->partial + c->partial_length, part, taken);
    c->partial_length += (uint8_t)taken;
    if (c->partial_length < MARKER_LENGTH) return;
    if (c->partial[1] == 'T') count_event(c, c->partial, time);
    c->partial_length = 0;
    p = part + taken;
  }
  while (p < end && (p = memchr(p, '~', (size_t)(end - p)))) {
    size_t left = (size_t)(end - p);
    if (left < MARKER_LENGTH) {
      memcpy(c->partial, p, left);
      c->partial_length = (uint8_t)left;
      return;
    }
    if (p[1] == 'T') count_event(c, p, time);
    p += p[1] == 'T' ? MARKER_LENGTH : 1;
  }
}

/* Reads one character of the framing of a chunk. */
static void read_framing(struct conn *c, char character) {
  if (c->framing == DATA_END) {
    if (character == '\n') c->framing = SIZE;
  } else if (character == '\n') {
    c->framing = DATA;
  } else if (c->framing == SIZE) {
    char lower = character | 32;
    if (character >= '0' && character <= '9') {
      c->chunk_left = c->chunk_left * 16 + (uint32_t)(character - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      c->chunk_left = c->chunk_left * 16 + (uint32_t)(lower - 'a' + 10);
    } else {
      c->framing = EXTENSION;
    }
  }
}

/* Scans the data of the chunks only, because the framing may be in the middle of a marker. */
static void scan_body(struct conn *c, const char *body, size_t length, uint64_t time) {
  if (c->framing == UNFRAMED) {
    scan(c, body, length, time);
    return;
  }
  for (const char *end = body + length; body < end;) {
    if (c->framing != DATA) {
      read_framing(c, *body++);
      continue;
    }
    size_t left = (size_t)(end - body);
    size_t taken = left < c->chunk_left ? left : c->chunk_left;
    scan(c, body, taken, time);
    body += taken;
    c->chunk_left -= (uint32_t)taken;
    if (c->chunk_left == 0) c->framing = DATA_END;
  }
}

static void close_conn(struct conn *c) {
  epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
  close(c->fd);
  c->fd = -1;
  if (c->state != STREAMING) failed_count++;
  closed_count++;
}

/* Sends the request when the connection is established. */
static void send_request(struct conn *c, int index) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) {
    fprintf(stderr, "connect: %s\n", strerror(error));
    close_conn(c);
    return;
  }
  char request[8192], group[16] = "";
  if (group_count) snprintf(group, sizeof group, "/%d", index % group_count);
  int length = snprintf(request, sizeof request,
                        "GET %s%s HTTP/1.1\r\n"
                        "Host: 127.0.0.1:%d\r\n"
                        "Accept: text/event-stream\r\n"
                        "%s\r\n",
                        path, group, port, extra_headers);
  if (send(c->fd, request, (size_t)length, MSG_NOSIGNAL) != length) {
    perror("send");
    close_conn(c);
    return;
  }
  c->state = REQUESTED;
  struct epoll_event interest = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
  epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &interest);
}

/* Reads the response headers. Returns the start of the body, or NULL if there is none to read. */
static char *read_head(struct conn *c, size_t length) {
  char *head_end = memmem(buffer, length, "\r\n\r\n", 4);
  if (!head_end) return NULL;
  if (length < 12 || memcmp(buffer + 9, "200", 3)) {
    fprintf(stderr, "bad status: %.60s\n", buffer);
    close_conn(c);
    return NULL;
  }
  char *body = head_end + 4;
  c->framing = memmem(buffer, (size_t)(body - buffer), "chunked", 7) ? SIZE : UNFRAMED;
  c->state = STREAMING;
  if (!required_events) ready_count++;
  if (!stops_reading) return body;
  epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
  return NULL;
}

static void on_ready(int index, uint32_t ready_events) {
  struct conn *c = &conns[index];
  if (c->state == CONNECTING && (ready_events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
    send_request(c, index);
    return;
  }
  ssize_t received = recv(c->fd, buffer, sizeof buffer, 0);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (received <= 0) {
    close_conn(c);
    return;
  }
  reads++;
  bytes += (uint64_t)received;
  uint64_t time = now();
  if (!first_receive) first_receive = time;
  last_receive = time;
  char *body = buffer;
  if (c->state == REQUESTED && !(body = read_head(c, (size_t)received))) return;
  uint32_t before = c->events;
  scan_body(c, body, (size_t)(buffer + received - body), time);
  if (before < required_events && c->events >= required_events) ready_count++;
}

/* Returns the CPU time of this process in microseconds. */
static double cpu_time(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* One run: from the command `start` until all events have arrived, or until the timeout. */
static struct {
  int is_running;
  uint64_t expected, started_at, deadline, reached_at;
  double cpu_before;
} run;

static void start_run(uint64_t expected, uint64_t timeout_ms) {
  run.is_running = 1;
  run.expected = expected;
  run.started_at = now();
  run.deadline = run.started_at + timeout_ms * 1000000ull;
  run.reached_at = 0;
  events = bytes = reads = max_latency = first_receive = last_receive = 0;
  memset(histogram, 0, sizeof histogram);
  for (int i = 0; i < conn_count; i++) conns[i].events = 0;
  run.cpu_before = cpu_time();
  printf("{\"started\":1}\n");
  fflush(stdout);
}

/* Prints the result. `done` is 1 after all events, 2 after a timeout. */
static void print_result(int done) {
  uint32_t min = ~0u, max = 0;
  for (int i = 0; i < conn_count; i++) {
    if (conns[i].events < min) min = conns[i].events;
    if (conns[i].events > max) max = conns[i].events;
  }
  printf("{\"done\":%d,\"events\":%llu,\"bytes\":%llu,\"reads\":%llu,", done,
         (unsigned long long)events, (unsigned long long)bytes, (unsigned long long)reads);
  printf("\"wall_ms\":%.2f,\"rx_ms\":%.2f,", (double)(now() - run.started_at) / 1e6,
         (double)(last_receive - first_receive) / 1e6);
  printf("\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,", percentile(.5),
         percentile(.9), percentile(.99), (double)max_latency / 1e3);
  printf("\"min_per_conn\":%u,\"max_per_conn\":%u,\"closed\":%d,\"client_cpu_us\":%.0f}\n", min,
         max, closed_count, cpu_time() - run.cpu_before);
  fflush(stdout);
}

static void check_run(void) {
  uint64_t time = now();
  int done = 0;
  if (events >= run.expected) {
    if (!run.reached_at) run.reached_at = time;
    if (time - run.reached_at > SETTLE_NS) done = 1;
  } else if (time > run.deadline) {
    done = 2;
  }
  if (!done) return;
  print_result(done);
  run.is_running = 0;
}

/* Reads commands from stdin. Exits after `quit`, and at the end of stdin. */
static void read_commands(void) {
  static char line[256];
  static int length = 0;
  char input[256];
  ssize_t received = read(0, input, sizeof input);
  if (received <= 0) exit(0);
  for (ssize_t i = 0; i < received; i++) {
    if (input[i] != '\n') {
      if (length < (int)sizeof line - 1) line[length++] = input[i];
      continue;
    }
    line[length] = 0;
    length = 0;
    if (!strcmp(line, "quit")) exit(0);
    unsigned long long expected, timeout_ms;
    if (sscanf(line, "start %llu %llu", &expected, &timeout_ms) == 2) {
      start_run(expected, timeout_ms);
    }
  }
}

static void connect_all(void) {
  static struct epoll_event ready[1024];
  uint64_t start = now();
  int started = 0;
  while (ready_count + failed_count < conn_count && now() - start <= CONNECT_TIMEOUT_NS) {
    while (started < conn_count && started - ready_count - failed_count < max_connecting) {
      start_conn(started++);
    }
    int count = epoll_wait(epoll_fd, ready, 1024, 1000);
    for (int i = 0; i < count; i++) on_ready((int)ready[i].data.u32, ready[i].events);
  }
  printf("{\"connected\":%d,\"failed\":%d,\"connect_ms\":%.1f}\n", ready_count, failed_count,
         (double)(now() - start) / 1e6);
  fflush(stdout);
}

static int parse_options(int argc, char **argv) {
  int option;
  while ((option = getopt(argc, argv, "p:u:n:w:g:e:H:Sz")) != -1) {
    if (option == 'p') port = atoi(optarg);
    else if (option == 'u') path = optarg;
    else if (option == 'n') conn_count = atoi(optarg);
    else if (option == 'w') max_connecting = atoi(optarg);
    else if (option == 'g') group_count = atoi(optarg);
    else if (option == 'e') required_events = (uint32_t)atoi(optarg);
    else if (option == 'S') spins = 0;
    else if (option == 'z') stops_reading = 1;
    else if (option == 'H') strcat(strcat(extra_headers, optarg), "\r\n");
    else return 0;
  }
  return 1;
}

int main(int argc, char **argv) {
  if (!parse_options(argc, argv)) return 2;
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  conns = calloc((size_t)conn_count, sizeof *conns);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  connect_all();
  struct epoll_event interest = {.events = EPOLLIN, .data.u32 = STDIN_ID};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &interest);
  static struct epoll_event ready[1024];
  for (;;) {
    int count = epoll_wait(epoll_fd, ready, 1024, run.is_running ? (spins ? 0 : 20) : 1000);
    for (int i = 0; i < count; i++) {
      uint32_t id = ready[i].data.u32;
      if (id == STDIN_ID) read_commands();
      else if (conns[id].fd >= 0) on_ready((int)id, ready[i].events);
    }
#if defined(__x86_64__)
    if (run.is_running && count == 0 && spins) __builtin_ia32_pause();
#endif
    if (run.is_running) check_run();
  }
}
