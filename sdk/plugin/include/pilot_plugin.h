/* The C ABI of Pilot plugins, version 1.0.
 *
 * Generated from sdk/plugin/src/abi.rs; do not edit.
 * docs/PLUGINS.md teaches it, examples/plugins/upper.c uses it.
 */

#ifndef PILOT_PLUGIN_H
#define PILOT_PLUGIN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/*
 Major version: tables of another one are refused.
 */
#define PILOT_ABI_MAJOR 1

/*
 Minor version: what was added at the end of the tables.
 */
#define PILOT_ABI_MINOR 0

/*
 It worked.
 */
#define PILOT_OK 0

/*
 Nothing now; [`PilotPlugin::stream_ready`] or [`PilotPlugin::wake`] tells when.
 */
#define PILOT_WOULD_BLOCK 1

/*
 The peer will send no more.
 */
#define PILOT_END 2

/*
 It failed; an error text says why where there is room for one.
 */
#define PILOT_ERROR -1

/*
 The stream is closed or broken.
 */
#define PILOT_CLOSED -2

/*
 An argument makes no sense: an unknown number, text that is not UTF-8, a
 call on the wrong thread.
 */
#define PILOT_INVALID -3

/*
 A quota or bound is reached.
 */
#define PILOT_LIMIT -4

/*
 The configuration does not grant it.
 */
#define PILOT_DENIED -5

/*
 The callback panicked; the host replaces the instance.
 */
#define PILOT_PANIC -6

/*
 This host or plugin does not do that.
 */
#define PILOT_UNSUPPORTED -7

/*
 There is no such key.
 */
#define PILOT_NOT_FOUND -8

/*
 The stream has data, or its end, to read.
 */
#define PILOT_READABLE 1

/*
 The stream takes data again.
 */
#define PILOT_WRITABLE 2

/*
 The stream is gone; its number is not valid after this call, which is the
 last one for it.
 */
#define PILOT_GONE 4

/*
 Levels of [`PilotHost::log`].
 */
#define PILOT_LOG_ERROR 1

/*
 Something a person should look at.
 */
#define PILOT_LOG_WARN 2

/*
 What happened.
 */
#define PILOT_LOG_INFO 3

/*
 Details.
 */
#define PILOT_LOG_DEBUG 4

/*
 Kinds of [`PilotHost::metric`]: adds to a counter.
 */
#define PILOT_METRIC_COUNTER 1

/*
 Sets a gauge.
 */
#define PILOT_METRIC_GAUGE 2

/*
 The host's side of an instance; opaque. It stays valid as long as the
 process lives.
 */
typedef struct PilotContext PilotContext;

/*
 Bytes that are valid during a call. `data` may be null when `len` is 0.
 */
typedef struct {
  /*
   First byte.
   */
  const uint8_t *data;
  /*
   Number of bytes.
   */
  size_t len;
} PilotSlice;

/*
 Bytes with an owner. Whoever holds it calls `release(owner)` once, if it is
 set, on any thread; `data` and `len` may be narrowed before. `release` must
 not wait for anything: it may run on the thread that moves all data.
 */
typedef struct {
  /*
   First byte.
   */
  const uint8_t *data;
  /*
   Number of bytes.
   */
  size_t len;
  /*
   Passed to `release`.
   */
  void *owner;
  /*
   Frees what `owner` stands for.
   */
  void (*release)(void *owner);
} PilotBuffer;

/*
 What a host gives to a plugin.
 */
typedef struct {
  /*
   [`ABI_MAJOR`] of the host.
   */
  uint16_t abi_major;
  /*
   [`ABI_MINOR`] of the host.
   */
  uint16_t abi_minor;
  /*
   Bytes of this table.
   */
  uint32_t struct_size;
  /*
   Writes a line to the host's log under the plugin's name. Any thread.
   */
  void (*log)(const PilotContext*, uint32_t level, PilotSlice text);
  /*
   Has [`PilotPlugin::wake`] called with `token` soon, once for several
   calls with one token before it. Any thread.
   */
  void (*wake)(const PilotContext*, uint64_t token);
  /*
   Has [`PilotPlugin::wake`] called with `token` after `nanos`. Setting a
   token again moves it; `u64::MAX` takes it back.
   */
  int32_t (*timer)(const PilotContext*, uint64_t token, uint64_t nanos);
  /*
   Takes what has arrived, a piece at a time: [`OK`] and a buffer,
   [`WOULD_BLOCK`], [`END`], or [`CLOSED`] for a broken stream.
   */
  int32_t (*stream_read)(const PilotContext*, uint64_t stream, PilotBuffer *data);
  /*
   Copies bytes to the stream, as many as there is room for, and says how
   many; [`WOULD_BLOCK`] when there is none.
   */
  int32_t (*stream_write)(const PilotContext*, uint64_t stream, PilotSlice data, size_t *written);
  /*
   Gives a buffer to the stream without a copy. The buffer is taken, and
   set to empty, only with [`OK`].
   */
  int32_t (*stream_write_buffer)(const PilotContext*, uint64_t stream, PilotBuffer *data);
  /*
   No more will be written; reading goes on.
   */
  int32_t (*stream_shutdown)(const PilotContext*, uint64_t stream);
  /*
   Lets go of the stream: what was written is delivered, then it closes.
   Its number is not valid any more.
   */
  int32_t (*stream_close)(const PilotContext*, uint64_t stream);
  /*
   Breaks the stream, with a reason for the log. Its number is not valid
   any more.
   */
  int32_t (*stream_reset)(const PilotContext*, uint64_t stream, PilotSlice reason);
  /*
   Opens a stream to `ADDRESS:PORT` or `HOSTNAME:PORT`. The answer comes to
   [`PilotPlugin::answer`] with `token`: the new stream's number as decimal
   text. The stream has the `user` pointer null until
   [`PilotHost::stream_attach`].
   */
  int32_t (*dial)(const PilotContext*, uint64_t token, PilotSlice to);
  /*
   Sets the pointer that comes with the events of a stream.
   */
  int32_t (*stream_attach)(const PilotContext*, uint64_t stream, void *user);
  /*
   Asks the host for something by name, with JSON; the JSON answer comes to
   [`PilotPlugin::answer`] with `token`. An unknown method is answered with
   [`UNSUPPORTED`], one that the configuration does not grant with [`DENIED`].
   */
  int32_t (*call)(const PilotContext*, uint64_t token, PilotSlice method, PilotSlice request);
  /*
   Sends a datagram to `ADDRESS:PORT` from `source_port`. Not
   acknowledged.
   */
  int32_t (*send_datagram)(const PilotContext*, PilotSlice to, uint16_t source_port, PilotSlice data);
  /*
   Emits an event: a name and a JSON object. [`LIMIT`] when the plugin
   emits faster than it may.
   */
  int32_t (*emit)(const PilotContext*, PilotSlice name, PilotSlice data);
  /*
   Adds to a counter or sets a gauge of the plugin.
   */
  int32_t (*metric)(const PilotContext*, uint32_t kind, PilotSlice name, double value);
  /*
   Reads a key of the plugin's own store: [`OK`] and a buffer, or [`NOT_FOUND`].
   */
  int32_t (*store_get)(const PilotContext*, PilotSlice key, PilotBuffer *value);
  /*
   Writes a key; durable when it returns [`OK`], [`LIMIT`] beyond the quota.
   */
  int32_t (*store_put)(const PilotContext*, PilotSlice key, PilotSlice value);
  /*
   Removes a key; [`OK`] also when there was none.
   */
  int32_t (*store_delete)(const PilotContext*, PilotSlice key);
  /*
   The keys that begin with `prefix`, in order, as a JSON array of strings.
   */
  int32_t (*store_keys)(const PilotContext*, PilotSlice prefix, PilotBuffer *keys);
  /*
   Answers [`PilotPlugin::validate`] or [`PilotPlugin::deliver`]: JSON of a
   verdict or a delivery. Late answers are ignored.
   */
  int32_t (*reply)(const PilotContext*, uint64_t question, PilotSlice body);
} PilotHost;

/*
 What a plugin gives to a host. Callbacks return [`OK`], [`ERROR`],
 [`PANIC`] or [`UNSUPPORTED`]; a missing one counts as [`UNSUPPORTED`].
 */
typedef struct {
  /*
   [`ABI_MAJOR`] that the plugin was built with.
   */
  uint16_t abi_major;
  /*
   [`ABI_MINOR`] that the plugin was built with.
   */
  uint16_t abi_minor;
  /*
   Bytes of this table.
   */
  uint32_t struct_size;
  /*
   JSON of a [`crate::Manifest`], valid as long as the library is loaded.
   */
  PilotSlice manifest;
  /*
   Makes an instance. `config` is JSON that the manifest's schema accepts.
   `host` and `context` are valid from now on. On failure `error` may be
   set to a text.
   */
  int32_t (*start)(const PilotHost *host,
                   const PilotContext *context,
                   PilotSlice config,
                   void **instance,
                   PilotBuffer *error);
  /*
   Ends an instance; the last call for it.
   */
  void (*stop)(void *instance);
  /*
   Whether the instance is fit to take over.
   */
  int32_t (*self_test)(void *instance, PilotBuffer *error);
  /*
   A stream has come in. `peer` is JSON of a [`crate::Peer`]. `*user` comes
   back with every event of the stream. Anything but [`OK`] resets it.
   */
  int32_t (*stream_open)(void *instance,
                         uint64_t stream,
                         uint16_t port,
                         PilotSlice peer,
                         void **user);
  /*
   [`READABLE`], [`WRITABLE`], [`GONE`] or several. The first comes by itself
   after [`PilotPlugin::stream_open`] or [`PilotHost::stream_attach`], the
   next after the plugin has been told [`WOULD_BLOCK`]. Anything but [`OK`]
   resets the stream.
   */
  int32_t (*stream_ready)(void *instance, uint64_t stream, void *user, uint32_t what);
  /*
   A datagram has come in on a port of a service that takes them.
   */
  int32_t (*datagram)(void *instance,
                      uint16_t port,
                      uint16_t source_port,
                      PilotSlice peer,
                      PilotSlice data);
  /*
   A timer or [`PilotHost::wake`].
   */
  int32_t (*wake)(void *instance, uint64_t token);
  /*
   The answer to [`PilotHost::call`] or [`PilotHost::dial`]: [`OK`] and its
   body, or another status and a text.
   */
  int32_t (*answer)(void *instance, uint64_t token, int32_t status, PilotSlice body);
  /*
   May this node join? `request` is JSON of a [`crate::JoinRequest`]; the
   verdict goes to [`PilotHost::reply`], now or later.
   */
  int32_t (*validate)(void *instance, uint64_t question, PilotSlice request);
  /*
   Take these events: one JSON object of a [`crate::Event`] a line. The
   delivery goes to [`PilotHost::reply`], now or later. One batch is under
   way at a time.
   */
  int32_t (*deliver)(void *instance, uint64_t question, PilotSlice sink, PilotSlice events);
  /*
   No more streams will come; those that are open may finish.
   */
  int32_t (*drain)(void *instance);
} PilotPlugin;

/*
 Type of the exported symbol [`ENTRY_SYMBOL`]. The table must stay valid as
 long as the library is loaded. Null means that the plugin refuses to load.
 */
typedef const PilotPlugin *(*PilotEntry)(void);

#endif  /* PILOT_PLUGIN_H */
