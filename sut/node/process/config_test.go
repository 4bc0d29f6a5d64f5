package process

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

const goodConfig = `{"node":"web-1","host":"web-1","role":"web","engine":"app",` +
	`"listen":"127.0.0.1","port":0,"dir":"/d","procs":1,"secret":"s","id_host":7,"drain_seconds":5,` +
	`"wiring":{"uses":{"db":[{"node":"db-1","address":"127.0.0.1:1"}]}},` +
	`"knobs":{"web.hosts":"2"},"data":{"size":"small","seed":1}}`

func TestConfigIsChecked(t *testing.T) {
	config, err := decodeConfig(strings.NewReader(goodConfig))
	if web := ladder.WebOf(config.Knobs); err != nil || web.Hosts != 2 || web.MaxConns != 500 {
		t.Errorf("config %+v, %v: want web.hosts 2 and the defaults of the other knobs", config, err)
	}
	for want, change := range map[string][2]string{
		"unknown field":        {`"port":0`, `"prt":0`},
		"cannot unmarshal":     {`"port":0`, `"port":"x"`},
		"want 0 to 65535":      {`"port":0`, `"port":-1`},
		"want an IP address":   {`127.0.0.1","port`, `localhost","port`},
		"the node has no name": {`"node":"web-1","host"`, `"node":"","host"`},
		"has no secret":        {`"secret":"s",`, ``},
		"memory_bytes -1":      {`"procs":1`, `"procs":1,"memory_bytes":-1`},
		"want a whole number":  {`"web.hosts":"2"`, `"web.hosts":"two"`},
		"unknown knob":         {`"web.hosts":"2"`, `"web.host":"2"`},
		"drain_seconds -1":     {`"drain_seconds":5`, `"drain_seconds":-1`},
		"no hosts after":       {`"wiring":{`, `"wiring":{"routes":[{"path":"/"}],`},
		"unexpected EOF":       {`"seed":1}}`, `"seed":1`},
		"id_host 256: want 1":  {`"id_host":7`, `"id_host":256`},
		"id_host 0: want 1":    {`"id_host":7,`, ``},
		"procs 5000":           {`"procs":1`, `"procs":5000`},
		`service "writes"`:     {`"procs":1`, `"procs":1,"service":"writes"`},
		"only web nodes":       {`"role":"web"`, `"role":"db","service":"reads"`},
		"want host:port":       {`127.0.0.1:1"`, `127.0.0.1"`},
		"address \"x:0\"":      {`127.0.0.1:1"`, `x:0"`},
		"has no name":          {`{"node":"db-1"`, `{"node":""`},
		"is listed twice":      {`"db":[`, `"db":[{"node":"db-1","address":"127.0.0.1:2"},`},
		"weight -1":            {`127.0.0.1:1"`, `127.0.0.1:1","weight":-1`},
	} {
		_, err := decodeConfig(strings.NewReader(strings.Replace(goodConfig, change[0], change[1], 1)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s instead of %s: error %v, want one with %q", change[1], change[0], err, want)
		}
	}
}

// A configuration that is accepted can be used, whatever the input was: reading its knobs
// does not panic, and encoding and decoding it gives the same configuration.
func FuzzNodeConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte(`{"node":"lb-1","role":"lb","engine":"balance","listen":"::1",` +
		`"knobs":{"web.cpu":"3,1","lb.routes":"path=/a -> web-1"},` +
		`"wiring":{"routes":[{"cookie":"a:b","to":["web-1"]}]}}`))
	f.Add([]byte(`{"node":"x","listen":"127.0.0.1","drain_seconds":1e300}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		config, err := decodeConfig(strings.NewReader(string(text)))
		if err != nil {
			return
		}
		_ = ladder.WebOf(config.Knobs).CPU.At(99)
		_ = ladder.CacheOf(config.Knobs).Bytes()
		_ = ladder.LBOf(config.Knobs).Sticky()
		document, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeConfig(strings.NewReader(string(document)))
		if err != nil || again.Node != config.Node || len(again.Wiring.Uses) != len(config.Wiring.Uses) {
			t.Fatalf("error %v after decoding %s again", err, document)
		}
	})
}

// No document makes a change of the neighbours panic. One that is accepted is the current wiring afterwards.
func FuzzWiring(f *testing.F) {
	f.Add([]byte(`{"epoch":2,"uses":{"db":[{"node":"db-2","address":"127.0.0.1:5432","draining":true}]}}`), "10")
	f.Add([]byte(`{"epoch":3,"routes":[{"method":"POST","path":"/a*","to":["web-1"]}],"rebalancing":true}`), "")
	f.Add([]byte(`{"epoch":9223372036854775807}`), "NaN")
	f.Add([]byte(`{"epoch":1}{}`), "-1")
	f.Fuzz(func(t *testing.T, document []byte, drain string) {
		n := newNeighbours(sut.Wiring{Epoch: 1}, func(context.Context, sut.Wiring) error { return nil })
		request := httptest.NewRequest(http.MethodPut, sut.WiringPath, bytes.NewReader(document))
		request.Header.Set(sut.DrainHeader, drain)
		w := httptest.NewRecorder()
		n.change(w, request)
		switch w.Code {
		case http.StatusNoContent:
			if err := checkWiring(n.current); err != nil {
				t.Errorf("%s was accepted: %v", document, err)
			}
		case http.StatusBadRequest, http.StatusConflict, http.StatusGatewayTimeout:
		default:
			t.Errorf("%s: status %d", document, w.Code)
		}
	})
}
