/* A plugin that breaks the contract of the C ABI, one way per definition at
 * build time (the table) or per "mode" of its configuration (the calls). */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pilot_plugin.h"

#ifdef NO_SYMBOL
#define pilot_plugin_v1 something_else
#endif

static const PilotHost *host;
static const PilotContext *context;
static char mode[256];

static int is(const char *what) { return strstr(mode, what) != NULL; }

static PilotSlice text(const char *s) {
  PilotSlice slice = {(const uint8_t *)s, strlen(s)};
  return slice;
}

static int32_t start(const PilotHost *table, const PilotContext *given, PilotSlice config,
                     void **instance, PilotBuffer *error) {
  (void)error;
  host = table;
  context = given;
  size_t len = config.len < sizeof mode - 1 ? config.len : sizeof mode - 1;
  memcpy(mode, config.data, len);
  mode[len] = 0;
  *instance = mode;
  return is("no-error-text") ? -77 : PILOT_OK;
}

static void stop(void *instance) { (void)instance; }

static void *other_thread(void *id) {
  size_t written;
  uint64_t stream = *(uint64_t *)id;
  free(id);
  /* All of these belong to the plugin's own thread. */
  host->stream_write(context, stream, text("from another thread"), &written);
  host->stream_close(context, stream);
  host->timer(context, 1, 1);
  host->emit(context, text("x"), text("{}"));
  host->reply(context, 1, text("{}"));
  host->log(context, PILOT_LOG_INFO, text("allowed anywhere"));
  host->wake(context, 5);
  return NULL;
}

static int32_t stream_open(void *instance, uint64_t id, uint16_t port, PilotSlice peer,
                           void **user) {
  (void)instance;
  (void)port;
  (void)peer;
  /* Never a pointer to anything: the host must not follow it. */
  *user = (void *)0x1;
  size_t written = 0;
  if (is("lengths")) {
    PilotSlice huge = {(const uint8_t *)mode, SIZE_MAX}, null = {NULL, 100};
    PilotBuffer buffer = {(const uint8_t *)mode, SIZE_MAX, NULL, NULL};
    if (host->stream_write(context, id, huge, &written) != PILOT_INVALID) return PILOT_ERROR;
    if (host->stream_write(context, id, null, &written) != PILOT_INVALID) return PILOT_ERROR;
    if (host->stream_write(context, id, text("x"), NULL) != PILOT_INVALID) return PILOT_ERROR;
    if (host->stream_write_buffer(context, id, &buffer) != PILOT_INVALID) return PILOT_ERROR;
    if (host->stream_write_buffer(context, id, NULL) != PILOT_INVALID) return PILOT_ERROR;
    if (host->stream_read(context, id, NULL) != PILOT_INVALID) return PILOT_ERROR;
    if (host->emit(context, huge, text("{}")) != PILOT_INVALID) return PILOT_ERROR;
    if (host->emit(context, text("x"), text("not json")) != PILOT_INVALID) return PILOT_ERROR;
    if (host->store_put(context, null, text("x")) != PILOT_INVALID) return PILOT_ERROR;
    if (host->store_get(context, text("none"), NULL) != PILOT_NOT_FOUND) return PILOT_ERROR;
    if (host->call(context, 1, text("\xff\xfe"), text("{}")) != PILOT_INVALID) return PILOT_ERROR;
    if (host->send_datagram(context, text("nowhere"), 1, text("x")) != PILOT_INVALID)
      return PILOT_ERROR;
    host->log(context, 99, null);
    host->log(context, 99, text("a level that there is not"));
    host->stream_write(context, id, text("survived"), &written);
    host->stream_close(context, id);
    return PILOT_OK;
  }
  if (is("numbers")) {
    for (uint64_t n = 0; n < 1000; n++) {
      uint64_t other = id + 1 + n * 0x100000001ull;
      if (host->stream_write(context, other, text("x"), &written) == PILOT_OK) return PILOT_ERROR;
      host->stream_close(context, other);
      host->stream_reset(context, other, text("no such stream"));
      host->reply(context, n, text("{}"));
      host->stream_attach(context, other, NULL);
    }
    host->stream_write(context, id, text("survived"), &written);
    host->stream_close(context, id);
    /* Closed: every further use is refused. */
    if (host->stream_write(context, id, text("x"), &written) != PILOT_INVALID) return PILOT_ERROR;
    if (host->stream_close(context, id) != PILOT_INVALID) return PILOT_ERROR;
    return PILOT_OK;
  }
  if (is("threads")) {
    pthread_t thread;
    uint64_t *copy = malloc(sizeof *copy);
    *copy = id;
    pthread_create(&thread, NULL, other_thread, copy);
    pthread_join(thread, NULL);
    host->stream_write(context, id, text("survived"), &written);
    host->stream_close(context, id);
    return PILOT_OK;
  }
  if (is("wakes")) {
    for (uint64_t n = 0; n < 1000000; n++) host->wake(context, n);
    for (uint64_t n = 0; n < 100000; n++) host->timer(context, n, 1000000000000ull);
    host->stream_write(context, id, text("survived"), &written);
    host->stream_close(context, id);
    return PILOT_OK;
  }
  if (is("status")) return 4711;
  if (is("segfault")) *(volatile int *)8 = 1;
  if (is("abort")) abort();
  if (is("exit")) _exit(3);
  if (is("spin"))
    for (;;) {
    }
  return PILOT_OK;
}

static int32_t stream_ready(void *instance, uint64_t id, void *user, uint32_t what) {
  (void)instance;
  (void)id;
  (void)user;
  (void)what;
  return PILOT_OK;
}

static int32_t validate(void *instance, uint64_t question, PilotSlice request) {
  (void)instance;
  (void)request;
  if (is("twice")) {
    host->reply(context, question, text("{\"verdict\":\"deny\",\"reason\":\"first\"}"));
    host->reply(context, question, text("{\"verdict\":\"allow\"}"));
  } else {
    host->reply(context, question, text("{\"verdict\":\"maybe\"}"));
  }
  return PILOT_OK;
}

const PilotPlugin *pilot_plugin_v1(void) {
  static PilotPlugin plugin;
  plugin.abi_major = PILOT_ABI_MAJOR;
  plugin.abi_minor = PILOT_ABI_MINOR;
  plugin.struct_size = sizeof plugin;
  plugin.manifest = text("{\"name\":\"hostile-c\",\"version\":\"1\",\"future\":true,"
                         "\"config_schema\":{\"type\":\"object\"},\"services\":"
                         "[{\"name\":\"s\",\"ports\":[3001]}],\"rules\":[{\"name\":\"r\"}]}");
  plugin.start = start;
  plugin.stop = stop;
  plugin.stream_open = stream_open;
  plugin.stream_ready = stream_ready;
  plugin.validate = validate;
#ifdef WRONG_MAJOR
  plugin.abi_major = 2;
  plugin.abi_minor = 5;
#endif
#ifdef NEWER
  plugin.abi_minor = 9;
  /* A later 1.x has a longer table. */
  static struct {
    PilotPlugin known;
    void *more[4];
  } longer;
  plugin.struct_size = sizeof longer;
  longer.known = plugin;
  return &longer.known;
#endif
#ifdef SMALL
  plugin.struct_size = 16;
#endif
#ifdef NO_TABLE
  return NULL;
#endif
#ifdef LONG_MANIFEST
  plugin.manifest.len = SIZE_MAX;
#endif
#ifdef BAD_MANIFEST
  plugin.manifest = text("{\"name\":\"../etc\",\"version\":\"1\",\"services\":[]}");
#endif
#ifdef EMPTY
  plugin.start = NULL;
#endif
  return &plugin;
}
#ifdef HANG_CONSTRUCTOR
__attribute__((constructor)) static void constructor(void) { pause(); }
#endif
