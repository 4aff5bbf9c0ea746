/* SPDX-License-Identifier: Apache-2.0 */
/* CNI plugin, chained after the cluster's own: a pod of the mesh does not start before its capture stands.
 *
 * It decides nothing: it passes what the runtime says to the node agent's socket and waits for the answer. Standard
 * output carries the previous plugin's result unchanged. While the agent cannot be reached it waits `waitSeconds`; then
 * pods of namespaces that the agent's last note says are outside the mesh start, others fail (kubelet tries again)
 * unless `onAgentDown` is "open".
 *
 * Configuration, beside CNI's own fields: agentSocket, namespacesFile, waitSeconds, onAgentDown ("fail" or "open").
 * Protocol and error form: containernetworking SPEC.md 1.0. Exit status 0, or 1 with an error object on standard output.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_INPUT (1u << 20)
#define MAX_ANSWER (64u << 10)
#define ANSWER_S 45 /* above what the agent takes to find out (nodeagent/cni/admission.py) */
#define PAUSE_MS 200

enum { /* SPEC.md "Error" : 1-99 are CNI's, 100 and up ours */
       CNI_INVALID_ENVIRONMENT = 4,
       CNI_IO = 5,
       CNI_DECODE = 6,
       CNI_INVALID_CONFIG = 7,
       CNI_TRY_AGAIN = 11,
       CNI_UNAVAILABLE = 50,
       QANAT_NOT_ADMITTED = 100,
};

struct settings {
	const char *version; /* cniVersion of the configuration */
	const char *socket;
	const char *namespaces;
	double wait_s;
	bool open; /* onAgentDown */
};

static int fail(const char *version, int code, const char *message, const char *details)
{
	json_t *out = json_pack("{s:s, s:i, s:s, s:s}", "cniVersion", version, "code", code, "msg", message, "details",
				details);

	if (out)
		json_dumpf(out, stdout, JSON_COMPACT);
	else
		printf("{\"code\": %d, \"msg\": \"qanat-cni: out of memory\"}", code);
	json_decref(out);
	return 1;
}

/* The whole of fd, NUL-terminated, at most `most` bytes. NULL: too long, unreadable or out of memory. */
static char *slurp(int fd, size_t most, size_t *len)
{
	char *buf = malloc(most + 1);
	size_t have = 0;

	if (!buf)
		return NULL;
	for (;;) {
		ssize_t n = read(fd, buf + have, most + 1 - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 || have + (size_t)n > most) {
			free(buf);
			return NULL;
		}
		if (!n)
			break;
		have += (size_t)n;
	}
	buf[have] = 0;
	*len = have;
	return buf;
}

static const char *text_of(const json_t *config, const char *name, const char *otherwise)
{
	const char *found = json_string_value(json_object_get(config, name));

	return found ? found : otherwise;
}

static const char *env(const char *name)
{
	const char *found = getenv(name);

	return found ? found : "";
}

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int dial(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = ANSWER_S };
	int fd;

	if (strlen(path) >= sizeof(to.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(to.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
		int err = errno;

		close(fd);
		errno = err;
		return -1;
	}
	return fd;
}

/* Waits for an agent that restarts. */
static int dial_patiently(const struct settings *s)
{
	const double end = now_s() + s->wait_s;
	const struct timespec pause = { .tv_nsec = PAUSE_MS * 1000000L };

	for (;;) {
		int fd = dial(s->socket);

		if (fd >= 0 || now_s() >= end)
			return fd;
		nanosleep(&pause, NULL);
	}
}

static int send_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		data += n;
		len -= (size_t)n;
	}
	return shutdown(fd, SHUT_WR);
}

/* Sends the request over fd and reads the answer. NULL when there was none; the caller frees. */
static json_t *ask(int fd, json_t *config)
{
	json_t *request = json_pack("{s:s, s:s, s:s, s:s, s:s, s:O}", "command", env("CNI_COMMAND"), "containerId",
				    env("CNI_CONTAINERID"), "netns", env("CNI_NETNS"), "ifname", env("CNI_IFNAME"),
				    "args", env("CNI_ARGS"), "config", config);
	char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
	json_t *answer = NULL;
	size_t len;

	if (text && !send_all(fd, text, strlen(text))) {
		char *got = slurp(fd, MAX_ANSWER, &len);

		answer = got ? json_loadb(got, len, 0, NULL) : NULL;
		free(got);
	}
	free(text);
	json_decref(request);
	return answer;
}

/* The value of `key` in CNI_ARGS ("A=1;B=2"); false when it is not there or does not fit. */
static bool argument(const char *key, char *out, size_t cap)
{
	const char *at = env("CNI_ARGS");
	size_t len = strlen(key);

	for (; at; at = strchr(at, ';'), at = at ? at + 1 : NULL) {
		const char *value = at + len + 1;

		if (!strncmp(at, key, len) && at[len] == '=') {
			size_t n = strcspn(value, ";");

			if (!n || n >= cap)
				return false;
			memcpy(out, value, n);
			out[n] = 0;
			return true;
		}
	}
	return false;
}

/* Whether the agent's last note (an object: namespace -> is it in the mesh) says that nothing of this pod's namespace
 * is captured. No note, no such namespace, a note that others can write: not known, so no. */
static bool is_known_outside(const struct settings *s)
{
	int fd = open(s->namespaces, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	char namespace[256];
	json_t *note = NULL;
	struct stat st;
	char *text;
	size_t len;
	bool outside = false;

	if (fd < 0)
		return false;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && !st.st_uid && !(st.st_mode & 022)) {
		text = slurp(fd, MAX_INPUT, &len);
		note = text ? json_loadb(text, len, 0, NULL) : NULL;
		free(text);
	}
	close(fd);
	if (argument("K8S_POD_NAMESPACE", namespace, sizeof(namespace)))
		outside = json_is_false(json_object_get(note, namespace));
	json_decref(note);
	return outside;
}

static int pass_on(const struct settings *s, json_t *config)
{
	json_t *result = json_object_get(config, "prevResult");

	if (json_object_set_new(result, "cniVersion", json_string(s->version)) ||
	    json_dumpf(result, stdout, JSON_COMPACT))
		return fail(s->version, CNI_IO, "qanat-cni: the result cannot be written", "");
	return 0;
}

static int add_or_check(const struct settings *s, json_t *config, bool add)
{
	int fd = dial_patiently(s), err = errno, ret = 0;
	json_t *answer;
	char why[512];

	if (fd < 0) {
		if (s->open || is_known_outside(s))
			return add ? pass_on(s, config) : 0;
		snprintf(why, sizeof(why), "%s: %s; is the qanat node agent running on this node?", s->socket,
			 strerror(err));
		return fail(s->version, CNI_TRY_AGAIN, "qanat-cni: no node agent, and this pod may be in the mesh",
			    why);
	}
	answer = ask(fd, config);
	close(fd);
	if (!answer)
		ret = fail(s->version, CNI_TRY_AGAIN, "qanat-cni: the node agent went away while it was asked", "");
	else if (!json_is_true(json_object_get(answer, "ok")))
		ret = fail(s->version, QANAT_NOT_ADMITTED, "qanat-cni: not admitted",
			   text_of(answer, "message", "no reason given"));
	else if (add)
		ret = pass_on(s, config);
	json_decref(answer);
	return ret;
}

/* Never fails: a pod must be able to go whatever becomes of us. */
static int delete (const struct settings *s, json_t *config)
{
	int fd = dial(s->socket);

	if (fd >= 0) {
		json_decref(ask(fd, config));
		close(fd);
	}
	return 0;
}

static int status(const struct settings *s)
{
	int fd = dial(s->socket);

	if (fd < 0)
		return fail(s->version, CNI_UNAVAILABLE, "qanat-cni: no node agent", strerror(errno));
	close(fd);
	return 0;
}

static int run(const char *command, json_t *config)
{
	struct settings s = {
		.version = text_of(config, "cniVersion", "0.3.1"),
		.socket = text_of(config, "agentSocket", "/run/qanat/cni.sock"),
		.namespaces = text_of(config, "namespacesFile", "/run/qanat/cni-namespaces.json"),
		.wait_s = json_number_value(json_object_get(config, "waitSeconds")),
		.open = !strcmp(text_of(config, "onAgentDown", "fail"), "open"),
	};
	bool chained = json_is_object(json_object_get(config, "prevResult"));

	if (!strcmp(command, "DEL"))
		return delete (&s, config);
	if (!strcmp(command, "STATUS"))
		return status(&s);
	if (!strcmp(command, "GC"))
		return 0;
	if (strcmp(command, "ADD") && strcmp(command, "CHECK"))
		return fail(s.version, CNI_INVALID_ENVIRONMENT, "qanat-cni: unknown CNI_COMMAND", command);
	if (!chained)
		return fail(s.version, CNI_INVALID_CONFIG,
			    "qanat-cni: must be chained after the cluster's network plugin",
			    "no prevResult in the configuration");
	return add_or_check(&s, config, !strcmp(command, "ADD"));
}

int main(void)
{
	const char *command = env("CNI_COMMAND");
	json_error_t error;
	json_t *config;
	size_t len;
	char *text;
	int ret;

	if (!strcmp(command, "VERSION")) {
		puts("{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1."
		     "0\"]}");
		return 0;
	}
	text = slurp(STDIN_FILENO, MAX_INPUT, &len);
	if (!text)
		return fail("1.0.0", CNI_IO, "qanat-cni: the configuration cannot be read",
			    "more than 1 MiB, or an error");
	config = json_loadb(text, len, 0, &error);
	free(text);
	if (!json_is_object(config)) {
		json_decref(config);
		return fail("1.0.0", CNI_DECODE, "qanat-cni: the configuration is not a JSON object", error.text);
	}
	ret = run(command, config);
	json_decref(config);
	return ret;
}
