/* A port service in C: sends back what it gets, in capitals.
 *
 *   cc -shared -fPIC -O2 -I sdk/plugin/include -o libupper.so examples/plugins/upper.c
 *
 * Copy libupper.so into ~/.pilot/plugins and try it:
 *
 *   printf hello | pilotctl connect TARGET 2001
 *
 * The host calls everything here on one thread, one call at a time, so nothing
 * needs a lock, and nothing may block.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "pilot_plugin.h"

#define CHUNK 4096

static const PilotHost *host;

struct instance {
  const PilotContext *context;
};

/* One stream: what was read and not yet written. */
struct stream {
  unsigned char data[CHUNK];
  size_t len, sent;
  PilotBuffer piece; /* what is left of the piece that was read last */
  int ended;
};

static PilotSlice text(const char *s) {
  PilotSlice slice = {(const uint8_t *)s, strlen(s)};
  return slice;
}

static int32_t start(const PilotHost *table, const PilotContext *context, PilotSlice config,
                     void **instance, PilotBuffer *error) {
  struct instance *made = malloc(sizeof *made);
  (void)config;
  (void)error;
  if (made == NULL) return PILOT_ERROR;
  host = table;
  made->context = context;
  *instance = made;
  host->log(context, PILOT_LOG_INFO, text("upper is ready"));
  return PILOT_OK;
}

static void stop(void *instance) { free(instance); }

static void drop_piece(struct stream *s) {
  if (s->piece.release != NULL) s->piece.release(s->piece.owner);
  memset(&s->piece, 0, sizeof s->piece);
}

static void let_go(struct instance *self, uint64_t id, struct stream *s) {
  drop_piece(s);
  free(s);
  host->stream_close(self->context, id);
}

/* Moves bytes until the host says that it would block. */
static void pump(struct instance *self, uint64_t id, struct stream *s) {
  for (;;) {
    while (s->sent < s->len) {
      PilotSlice rest = {s->data + s->sent, s->len - s->sent};
      size_t written = 0;
      int32_t status = host->stream_write(self->context, id, rest, &written);
      if (status == PILOT_WOULD_BLOCK) return; /* stream_ready tells when */
      if (status != PILOT_OK) return let_go(self, id, s);
      s->sent += written;
    }
    if (s->ended) return let_go(self, id, s);
    if (s->piece.len == 0) {
      drop_piece(s);
      int32_t status = host->stream_read(self->context, id, &s->piece);
      if (status == PILOT_WOULD_BLOCK) return;
      if (status != PILOT_OK) {
        s->ended = 1;
        continue;
      }
    }
    s->sent = 0;
    s->len = s->piece.len < CHUNK ? s->piece.len : CHUNK;
    for (size_t i = 0; i < s->len; i++) s->data[i] = (unsigned char)toupper(s->piece.data[i]);
    s->piece.data += s->len; /* a buffer may be narrowed before it is released */
    s->piece.len -= s->len;
  }
}

static int32_t stream_open(void *instance, uint64_t id, uint16_t port, PilotSlice peer,
                           void **user) {
  struct stream *s = calloc(1, sizeof *s);
  (void)id; /* stream_ready comes next by itself */
  (void)port;
  (void)peer;
  if (s == NULL) return PILOT_ERROR; /* the host resets the stream */
  *user = s;
  (void)instance;
  return PILOT_OK;
}

static int32_t stream_ready(void *instance, uint64_t id, void *user, uint32_t what) {
  struct stream *s = user;
  if (what & PILOT_GONE) {
    drop_piece(s);
    free(s);
  } else {
    pump(instance, id, s);
  }
  return PILOT_OK;
}

const PilotPlugin *pilot_plugin_v1(void) {
  static const char manifest[] =
      "{\"name\":\"upper\",\"version\":\"1.0.0\",\"description\":\"sends back capitals\","
      "\"services\":[{\"name\":\"upper\",\"ports\":[2001]}]}";
  static PilotPlugin plugin;
  plugin.abi_major = PILOT_ABI_MAJOR;
  plugin.abi_minor = PILOT_ABI_MINOR;
  plugin.struct_size = sizeof plugin;
  plugin.manifest = text(manifest);
  plugin.start = start;
  plugin.stop = stop;
  plugin.stream_open = stream_open;
  plugin.stream_ready = stream_ready;
  return &plugin;
}
