/* A lean client for event streams: opens N connections, counts events by a marker in their data ("~T" + 16 decimal digits =
 * CLOCK_MONOTONIC in ns at the publish) and keeps a histogram of latencies. Driven over stdin, answers with lines of JSON.
 *
 *   cc -O2 -o client client.c
 *   ./client -p PORT [-u /listen] [-n 1000] [-w INFLIGHT] [-g GROUPS] [-e EVENTS] [-H "Name: value"]... [-S]
 *     -g  connection i asks for PATH/(i mod GROUPS)
 *     -e  a connection counts as connected only when it has got so many events
 *     -z  reads nothing once it has the head of the response
 *     -S  sleep in epoll_wait instead of spinning, for a machine with one CPU
 *   stdin:  start EXPECTED TIMEOUT_MS   count until EXPECTED events have come, and a moment longer to see one too many
 *           quit
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

#define MARK 18 /* "~T" + 16 digits */

#define SETTLE_NS 20000000ull /* how long to look for an event too many */

/* `frame`: how the body is framed. 0 not at all, else chunked: 1 in a size, 2 in its line's rest, 3 in the data, 4 in the CRLF behind it. */
struct conn { int fd; uint8_t state, ncarry, frame; char carry[MARK]; uint32_t events; uint32_t left; };
static struct conn *conns;
static int N = 1000, port = 0, groups = 0, inflight_max = 200, spin = 1;
static int sleeps = 0;
static uint32_t wanted = 0;
static const char *path = "/listen";
static char extra[4096];
static int ep, ready, failed, closed_n;
static uint64_t events, bytes, reads;
static uint64_t hist[64 * 64]; /* log2 buckets, 64 sub-buckets each (on ns) */
static uint64_t lat_max, first_rx, last_rx;
static char buf[1 << 18];

static uint64_t now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec; }
static void record(uint64_t ns) {
  if (ns > lat_max) lat_max = ns;
  int b; if (ns < 64) b = (int)ns; else { int e = 63 - __builtin_clzll(ns); b = (e - 5) * 64 + (int)((ns >> (e - 6)) & 63); }
  if (b >= 64 * 64) b = 64 * 64 - 1;
  hist[b]++;
}
static double pct(double p) {
  uint64_t tot = 0; for (int i = 0; i < 64 * 64; i++) tot += hist[i];
  if (!tot) return -1;
  uint64_t want = (uint64_t)(p * (double)tot), c = 0;
  for (int i = 0; i < 64 * 64; i++) { c += hist[i]; if (c > want) { if (i < 64) return i / 1e3; int e = i / 64 + 5; return (double)((1ull << e) + ((uint64_t)(i & 63) << (e - 6))) / 1e3; } }
  return lat_max / 1e3;
}
static uint64_t digits(const char *p) { uint64_t v = 0; for (int i = 0; i < 16; i++) v = v * 10 + (uint64_t)(p[i] - '0'); return v; }

static void start_conn(int i) {
  struct conn *c = &conns[i];
  memset(c, 0, sizeof *c);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) { perror("socket"); exit(2); }
  struct sockaddr_in d = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  d.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  c->fd = fd;
  if (connect(fd, (struct sockaddr *)&d, sizeof d) && errno != EINPROGRESS) { perror("connect"); exit(2); }
  struct epoll_event e = {.events = EPOLLOUT, .data.u32 = (uint32_t)i};
  epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}
static void scan(struct conn *c, const char *b, size_t n, uint64_t t) {
  const char *end = b + n, *p = b;
  if (c->ncarry) {
    size_t need = MARK - c->ncarry, take = n < need ? n : need;
    memcpy(c->carry + c->ncarry, b, take);
    if (c->ncarry + take < MARK) { c->ncarry += (uint8_t)take; return; }
    if (c->carry[1] == 'T') { events++; c->events++; record(t - digits(c->carry + 2)); }
    c->ncarry = 0; p = b + take;
  }
  while (p < end && (p = memchr(p, '~', (size_t)(end - p)))) {
    size_t left = (size_t)(end - p);
    if (left < MARK) { memcpy(c->carry, p, left); c->ncarry = (uint8_t)left; return; }
    if (p[1] == 'T') { events++; c->events++; record(t - digits(p + 2)); p += MARK; } else p++;
  }
}
/* Takes the chunks apart: their sizes may stand in the middle of a marker. */
static void unframe(struct conn *c, const char *b, size_t n, uint64_t t) {
  if (c->frame == 0) { scan(c, b, n, t); return; }
  for (const char *end = b + n; b < end;) {
    if (c->frame == 3) {
      size_t k = (size_t)(end - b) < c->left ? (size_t)(end - b) : c->left;
      scan(c, b, k, t); b += k; c->left -= (uint32_t)k;
      if (c->left == 0) c->frame = 4;
      continue;
    }
    char ch = *b++;
    if (c->frame == 4) { if (ch == '\n') c->frame = 1; continue; }
    if (ch == '\n') { c->frame = 3; continue; }
    if (c->frame == 2) continue;
    if (ch >= '0' && ch <= '9') c->left = c->left * 16 + (uint32_t)(ch - '0');
    else if ((ch | 32) >= 'a' && (ch | 32) <= 'f') c->left = c->left * 16 + (uint32_t)((ch | 32) - 'a' + 10);
    else c->frame = 2;
  }
}
static void drop(struct conn *c) { epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL); close(c->fd); c->fd = -1; if (c->state < 2) failed++; closed_n++; }
static void on_event(int i, uint32_t ev) {
  struct conn *c = &conns[i];
  if (c->state == 0 && (ev & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
    int err = 0; socklen_t l = sizeof err; getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &l);
    if (err) { fprintf(stderr, "connect: %s\n", strerror(err)); drop(c); return; }
    char req[8192], group[16] = "";
    if (groups) snprintf(group, sizeof group, "/%d", i % groups);
    int n = snprintf(req, sizeof req, "GET %s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n%s\r\n", path, group, port, extra);
    if (send(c->fd, req, (size_t)n, MSG_NOSIGNAL) != n) { perror("send"); drop(c); return; }
    c->state = 1;
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
    return;
  }
  ssize_t r = recv(c->fd, buf, sizeof buf, 0);
  if (r < 0) { if (errno == EAGAIN || errno == EINTR) return; drop(c); return; }
  if (r == 0) { drop(c); return; }
  reads++; bytes += (uint64_t)r;
  uint64_t t = now(); if (!first_rx) first_rx = t; last_rx = t;
  char *body = buf;
  if (c->state == 1) {
    char *end = memmem(buf, (size_t)r, "\r\n\r\n", 4);
    if (!end) return;
    if (r < 12 || memcmp(buf + 9, "200", 3)) { fprintf(stderr, "bad status: %.60s\n", buf); drop(c); return; }
    body = end + 4;
    c->frame = memmem(buf, (size_t)(body - buf), "chunked", 7) ? 1 : 0;
    c->state = 2;
    if (!wanted) ready++;
    if (sleeps) { epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL); return; }
  }
  uint32_t before = c->events;
  unframe(c, body, (size_t)(buf + r - body), t);
  if (wanted && before < wanted && c->events >= wanted) ready++;
}
static void cpu(double *u, double *s) { struct rusage r; getrusage(RUSAGE_SELF, &r); *u = (double)r.ru_utime.tv_sec * 1e6 + (double)r.ru_utime.tv_usec; *s = (double)r.ru_stime.tv_sec * 1e6 + (double)r.ru_stime.tv_usec; }

int main(int argc, char **argv) {
  int o;
  while ((o = getopt(argc, argv, "p:u:n:w:g:e:H:Sz")) != -1) switch (o) {
    case 'p': port = atoi(optarg); break; case 'u': path = optarg; break; case 'n': N = atoi(optarg); break;
    case 'w': inflight_max = atoi(optarg); break; case 'g': groups = atoi(optarg); break; case 'e': wanted = (uint32_t)atoi(optarg); break;
    case 'H': strcat(extra, optarg); strcat(extra, "\r\n"); break;
    case 'S': spin = 0; break; case 'z': sleeps = 1; break; default: return 2;
  }
  struct rlimit rl; getrlimit(RLIMIT_NOFILE, &rl); rl.rlim_cur = rl.rlim_max; setrlimit(RLIMIT_NOFILE, &rl);
  conns = calloc((size_t)N, sizeof *conns);
  ep = epoll_create1(EPOLL_CLOEXEC);
  static struct epoll_event evs[1024];
  uint64_t t0 = now(); int started = 0;
  while (ready + failed < N) {
    while (started < N && started - ready - failed < inflight_max) start_conn(started++);
    int k = epoll_wait(ep, evs, 1024, 1000);
    for (int j = 0; j < k; j++) on_event((int)evs[j].data.u32, evs[j].events);
    if (now() - t0 > 120000000000ull) break;
  }
  printf("{\"connected\":%d,\"failed\":%d,\"connect_ms\":%.1f}\n", ready, failed, (double)(now() - t0) / 1e6); fflush(stdout);
  struct epoll_event se = {.events = EPOLLIN, .data.u32 = 0xffffffffu};
  epoll_ctl(ep, EPOLL_CTL_ADD, 0, &se);
  char line[256]; int ln = 0, running = 0; uint64_t expect = 0, deadline = 0, reached = 0, tstart = 0; double u0 = 0, s0 = 0;
  for (;;) {
    int k = epoll_wait(ep, evs, 1024, running ? (spin ? 0 : 20) : 1000);
    for (int j = 0; j < k; j++) {
      if (evs[j].data.u32 != 0xffffffffu) { if (conns[evs[j].data.u32].fd >= 0) on_event((int)evs[j].data.u32, evs[j].events); continue; }
      char tmp[256]; ssize_t r = read(0, tmp, sizeof tmp);
      if (r <= 0) return 0;
      for (ssize_t q = 0; q < r; q++) {
        if (tmp[q] != '\n') { if (ln < 255) line[ln++] = tmp[q]; continue; }
        line[ln] = 0; ln = 0;
        if (!strcmp(line, "quit")) return 0;
        unsigned long long a, b;
        if (sscanf(line, "start %llu %llu", &a, &b) == 2) {
          expect = a; tstart = now(); deadline = tstart + b * 1000000ull; reached = 0; running = 1;
          events = bytes = reads = lat_max = first_rx = last_rx = 0; memset(hist, 0, sizeof hist);
          for (int i = 0; i < N; i++) conns[i].events = 0;
          cpu(&u0, &s0); printf("{\"started\":1}\n"); fflush(stdout);
        }
      }
    }
#if defined(__x86_64__)
    if (running && k == 0 && spin) __builtin_ia32_pause();
#endif
    if (running) {
      uint64_t t = now(); int done = 0;
      if (events >= expect) { if (!reached) reached = t; if (t - reached > SETTLE_NS) done = 1; }
      else if (t > deadline) done = 2;
      if (done) {
        uint32_t mn = ~0u, mx = 0; for (int i = 0; i < N; i++) { if (conns[i].events < mn) mn = conns[i].events; if (conns[i].events > mx) mx = conns[i].events; }
        double u1, s1; cpu(&u1, &s1);
        printf("{\"done\":%d,\"events\":%llu,\"bytes\":%llu,\"reads\":%llu,\"wall_ms\":%.2f,\"rx_ms\":%.2f,\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,\"min_per_conn\":%u,\"max_per_conn\":%u,\"closed\":%d,\"client_cpu_us\":%.0f}\n",
               done, (unsigned long long)events, (unsigned long long)bytes, (unsigned long long)reads, (double)(now() - tstart) / 1e6, (double)(last_rx - first_rx) / 1e6,
               pct(.5), pct(.9), pct(.99), (double)lat_max / 1e3, mn, mx, closed_n, u1 + s1 - u0 - s0);
        fflush(stdout); running = 0;
      }
    }
  }
}
