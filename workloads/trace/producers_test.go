package trace_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/stagebench/stagebench/workloads/trace"
)

// TestProducers reads the same two requests as each of these servers logs them.
func TestProducers(t *testing.T) {
	t.Parallel()
	want := []trace.Record{
		{At: 0, Method: "GET", Path: "/a?b=c", Client: 0},
		{At: 2 * time.Second, Method: "POST", Path: "/d", Client: 1},
	}
	all := linesOfServers()
	maps.Copy(all, columnsOfServers())
	for name, text := range all {
		got := read(t, text)
		if diff := cmp.Diff(want, records(got)); diff != "" || len(got.Stats().Broken) > 0 {
			t.Errorf("%s: broken %v, records (-want +got)\n%s", name, got.Stats().Broken, diff)
		}
	}
}

// linesOfServers returns logs of lines without names.
func linesOfServers() map[string]string {
	return map[string]string{
		"nginx combined": `192.0.2.1 - - [17/May/2026:10:00:00 +0000] "GET /a?b=c HTTP/1.1" 200 5 "-" "agent"
192.0.2.2 - jo [17/May/2026:10:00:02 +0000] "POST /d HTTP/2.0" 200 5 "-" "agent"`,
		"Apache vhost_combined": `www.example:443 192.0.2.1 - - [17/May/2026:10:00:00 +0000] "GET /a?b=c HTTP/1.1" 200 5
shop.example:443 192.0.2.2 - - [17/May/2026:10:00:02 +0000] "POST /d HTTP/1.1" 200 5 "-" "agent"`,
		"Apache with forwarded addresses": `192.0.2.1, 203.0.113.1 - - [17/May/2026:10:00:00 +0000] "GET /a?b=c HTTP/1.1" 2
192.0.2.2, 203.0.113.1 - - [17/May/2026:10:00:02 +0000] "POST /d HTTP/1.1" 200 5`,
		"Istio in the mesh": `[2026-05-17T10:00:00.310Z] "GET /a?b=c HTTP/2" 200 ` +
			`- via_upstream - "-" 154 0 226 100 "-" "agent" ` +
			`"id" "shop" "10.0.0.9:80" inbound|80|| 127.0.0.1:4 10.0.0.9:80 192.0.2.1:5 - default
[2026-05-17T10:00:02.310Z] "POST /d HTTP/1.1" 200 - via_upstream - "-" 154 0 226 100 "-" "agent" ` +
			`"id" "shop" "10.0.0.9:80" inbound|80|| 127.0.0.1:4 10.0.0.9:80 192.0.2.2:5 - default`,
		"Apache with host names": `www.example:80 one.example - - [17/May/2026:10:00:00 +0000] "GET /a?b=c HTTP/1.1" 200 5
www.example:80 two.example - jo [17/May/2026:10:00:02 +0000] "POST /d HTTP/1.1" 200 5`,
		"Apache with a joined host": `www.example:443:192.0.2.1 - - [17/May/2026:10:00:00 +0000] "GET /a?b=c HTTP/1.1" 200 5
www.example:443:2001:db8::1 - - [17/May/2026:10:00:02 +0000] "POST /d HTTP/1.1" 200 5`,
		"Traefik CLF": `192.0.2.1 - - [17/May/2026:10:00:00 +0000] "GET /a?b=c HTTP/1.1" 200 5 "-" "-" 1 "web@docker" "-" 3ms
192.0.2.2 - - [17/May/2026:10:00:02 +0000] "POST /d HTTP/1.1" 200 5 "-" "-" 2 "web@docker" "-" 3ms`,
		"Envoy": `[2026-05-17T10:00:00.310Z] "GET /a?b=c HTTP/2" 204 - 154 0 226 100 "192.0.2.1, 192.0.2.9" "agent" "cc21" ` +
			`"192.0.2.7:80" "tcp://10.0.2.1:80"
[2026-05-17T10:00:02.310Z] "POST /d HTTP/1.1" 200 - 154 0 226 100 "192.0.2.2" "agent" "cc22" "locations" "-"`,
		"Istio": `[2026-05-17T10:00:00.310Z] "GET /a?b=c HTTP/2" 200 - via_upstream - "-" 154 0 226 100 "192.0.2.1" "agent"
[2026-05-17T10:00:02.310Z] "POST /d HTTP/1.1" 200 - via_upstream - "-" 154 0 226 100 "192.0.2.2" "agent"`,
	}
}

// columnsOfServers returns logs with named columns.
func columnsOfServers() map[string]string {
	return map[string]string{
		"nginx JSON with parsed columns": `{"time_iso8601":"2026-05-17T10:00:00+00:00","remote_addr":"192.0.2.1",` +
			`"request_method":"GET","uri":"/a","args":"b=c","status":"200"}
{"time_iso8601":"2026-05-17T10:00:02+00:00","remote_addr":"192.0.2.2","request_method":"POST","uri":"/d","args":""}`,
		"nginx JSON with the request line": `{"msec":"1779012000.000","remote_addr":"192.0.2.1",` +
			`"request":"GET /a?b=c HTTP/1.1","uri":"/index.php","request_method":""}
{"msec":"1779012002.000","remote_addr":"192.0.2.2","request":"POST /d HTTP/1.1","uri":"/index.php"}`,
		"nginx JSON with the original target": `{"time_local":"17/May/2026:10:00:00 +0000","remote_addr":"192.0.2.1",` +
			`"request_method":"GET","request_uri":"/a?b=c","uri":"/rewritten","query_string":"x=y"}
{"time_local":"17/May/2026:10:00:02 +0000","remote_addr":"192.0.2.2","request_method":"POST","request_uri":"/d"}`,
		"nginx with a front controller": `{"time_iso8601":"2026-05-17T10:00:00+00:00","remote_addr":"192.0.2.1:4711",` +
			`"request_uri":"/a?b=c","uri":"/index.php","args":"q=/a"}
{"time_iso8601":"2026-05-17T10:00:02+00:00","remote_addr":"192.0.2.2:4711","request_method":"POST",` +
			`"request_uri":"/d",` +
			`"uri":"/index.php","args":"q=/d"}`,
		"Logstash": `{"@timestamp":"2026-05-17T10:00:00Z","clientip":"192.0.2.1","verb":"GET","request":"/a?b=c",` +
			`"path":"/var/log/access.log"}
{"@timestamp":"2026-05-17T10:00:02Z","clientip":"192.0.2.2","verb":"POST","request":"/d","path":"/var/log/access.log"}`,
		"Caddy": `{"level":"info","ts":1779012000.25,"logger":"http.log.access","msg":"handled request",` +
			`"request":{"remote_ip":"192.0.2.9","client_ip":"192.0.2.1","proto":"HTTP/2.0","method":"GET",` +
			`"host":"www.example","uri":"/a?b=c","headers":{"User-Agent":["x"]}},"duration":0.1,"status":200}
{"level":"info","ts":1779012002.25,"request":{"remote_ip":"192.0.2.2","method":"POST","uri":"/d"},"status":200}`,
		"Traefik JSON": `{"ClientAddr":"192.0.2.1:5000","ClientHost":"192.0.2.1","RequestMethod":"GET",` +
			`"RequestPath":"/a?b=c","StartUTC":"2026-05-17T10:00:00.5Z","time":"2026-05-17T12:34:56Z","DownstreamStatus":200}
{"ClientHost":"192.0.2.2","RequestMethod":"POST","RequestPath":"/d","StartUTC":"2026-05-17T10:00:02.5Z"}`,
		"Envoy JSON": `{"start_time":"2026-05-17T10:00:00.310Z","method":"GET","path":"/a?b=c","response_code":200,` +
			`"x_forwarded_for":"192.0.2.1","downstream_remote_address":"192.0.2.9:4711"}
{"start_time":"2026-05-17T10:00:02.310Z","method":"POST","path":"/d","x_forwarded_for":null,` +
			`"downstream_remote_address":"192.0.2.2:4712"}`,
		"Elastic Common Schema": `{"@timestamp":"2026-05-17T10:00:00Z","source.ip":"192.0.2.1",` +
			`"http":{"request":{"method":"get"}},"url":{"path":"/a","query":"b=c"}}
{"@timestamp":"2026-05-17T10:00:02Z","source":{"ip":"192.0.2.2"},"http":{"request":{"method":"POST"}},` +
			`"url":{"original":"/d","path":"/e"}}`,
		"CloudFront": "#Version: 1.0\n#Fields: date time x-edge-location sc-bytes c-ip cs-method cs(Host) cs-uri-stem " +
			"sc-status cs(Referer) cs(User-Agent) cs-uri-query\n" +
			"2026-05-17\t10:00:00\tFRA2\t12\t192.0.2.1\tGET\tx.cloudfront.net\t/a\t200\t-\tagent%20x\tb=c\n" +
			"2026-05-17\t10:00:02\tFRA2\t12\t192.0.2.2\tPOST\tx.cloudfront.net\t/d\t200\t-\tagent%20x\t-\n",
		"IIS": "#Software: Microsoft Internet Information Services 10.0\r\n#Date: 2026-05-17 10:00:00\r\n" +
			"#Fields: date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) sc-status\r\n" +
			"2026-05-17 10:00:00 192.0.2.8 GET /a b=c 80 - 192.0.2.1 agent+x 200\r\n" +
			"#Fields: date time c-ip cs-method cs-uri-stem\r\n2026-05-17 10:00:02 192.0.2.2 POST /d\r\n",
	}
}

// TestCompressions reads a compressed log, or refuses it by the name of its compression.
func TestCompressions(t *testing.T) {
	t.Parallel()
	const line = `{"time":1,"path":"/a"}`
	var zipped, zstandard bytes.Buffer
	g := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(g, line)
	_ = g.Close()
	z, err := zstd.NewWriter(&zstandard)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(z, line)
	_ = z.Close()
	// printf '%s' LINE | bzip2 | xxd -p
	bzipped, err := hex.DecodeString("425a68393141592653591bd12c9200000a19801004a0102262440a200031" +
		"0000089ea347946d24932d22442aa70f6858f8bb9229c28480de896490")
	if err != nil {
		t.Fatal(err)
	}
	for name, packed := range map[string][]byte{
		"gzip": zipped.Bytes(), "Zstandard": zstandard.Bytes(), "bzip2": bzipped, "none": []byte(line),
	} {
		if got := records(read(t, string(packed))); len(got) != 1 || got[0].Path != "/a" {
			t.Errorf("%s: records %+v", name, got)
		}
	}
	for name, packed := range map[string]string{"unxz FILE": "\xfd7zXZ\x00\x00", "unzip FILE": "PK\x03\x04\x14\x00"} {
		if _, err := trace.Read(strings.NewReader(packed), "test", nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one with %q", err, name)
		}
	}
}

// CloudFront encodes the values of its columns once more.
func TestCloudFrontEncoding(t *testing.T) {
	t.Parallel()
	text := "#Fields: date time cs-method cs-uri-stem cs-uri-query\n2026-05-17\t10:00:00\tGET\t/a%2520b\tq=%2522x%2522\n"
	if got := records(read(t, text))[0].Path; got != "/a%20b?q=%22x%22" {
		t.Errorf("path %s, want /a%%20b?q=%%22x%%22", got)
	}
}

// A name in lower case counts before the same name in another case, and columns of deeply nested objects are ignored.
func TestNamesOfColumns(t *testing.T) {
	t.Parallel()
	deep := fmt.Sprintf(`{"time":1,"Path":"/a","path":"/b","x":%s1%s}`,
		strings.Repeat(`{"x":`, 1000), strings.Repeat("}", 1000))
	if got := records(read(t, deep)); got[0].Path != "/b" {
		t.Errorf("records %+v, want the path /b", got)
	}
}
