package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// put sends a document and returns the response.
func put(n *neighbours, drain, document string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(http.MethodPut, sut.WiringPath, strings.NewReader(document))
	request.Header.Set(sut.DrainHeader, drain)
	answer := httptest.NewRecorder()
	n.change(answer, request)
	return answer
}

// shown returns the current wiring as the node shows it.
func shown(n *neighbours) string {
	answer := httptest.NewRecorder()
	n.show(answer, nil)
	return strings.TrimSpace(answer.Body.String())
}

func TestWiringIsApplied(t *testing.T) {
	t.Parallel()
	var applied []sut.Wiring
	n := newNeighbours(sut.Wiring{Epoch: 3}, func(_ context.Context, w sut.Wiring) error {
		switch {
		case w.Epoch == 77:
			return fmt.Errorf("%w: not for me", sut.ErrWiring)
		case w.Epoch == 78:
			return errors.New("it broke")
		}
		applied = append(applied, w)
		return nil
	})
	const db = `{"db":[{"node":"db-1","address":"127.0.0.1:1"}]}`
	for _, test := range []struct {
		drain, document string
		want            int
		shown           string
	}{
		{"", `{"epoch":3,"uses":` + db + `}`, http.StatusNoContent, `{"epoch":3,"uses":` + db + `}`},
		{"1.5", `{"epoch":3,"uses":` + db + `}`, http.StatusNoContent, ""}, // again
		{"", `{"epoch":5,"moving":true}`, http.StatusNoContent, `{"epoch":5,"moving":true}`},
		{"", `{"epoch":4}`, http.StatusConflict, ""},
		{"", `{"epoch":77}`, http.StatusBadRequest, ""},
		{"", `{"epoch":6,"colour":"red"}`, http.StatusBadRequest, ""},
		{"", `{"epoch":6}{}`, http.StatusBadRequest, ""},
		{"", ``, http.StatusBadRequest, ""},
		{"", `[]`, http.StatusBadRequest, ""},
		{"", `{"epoch":-1}`, http.StatusBadRequest, ""},
		{"soon", `{"epoch":6}`, http.StatusBadRequest, ""},
		{"-1", `{"epoch":6}`, http.StatusBadRequest, ""},
		{"NaN", `{"epoch":6}`, http.StatusBadRequest, ""},
		{"", `{"epoch":6,"uses":{"db":[{"node":"db-1","address":"here"}]}}`, http.StatusBadRequest, ""},
		{"", `{"epoch":6,"routes":[{"path":"/a"}]}`, http.StatusBadRequest, ""},
		{"", `{"epoch":6}`, http.StatusNoContent, `{"epoch":6}`},
		{"", `{"epoch":78}`, http.StatusInternalServerError, `{"epoch":78}`},
	} {
		before := shown(n)
		if test.shown == "" {
			test.shown = before
		}
		answer := put(n, test.drain, test.document)
		if answer.Code != test.want || shown(n) != test.shown {
			t.Errorf("%s: status %d, body %s, current wiring %s", test.document, answer.Code, answer.Body, shown(n))
		}
		if body := answer.Body.String(); answer.Code != http.StatusNoContent && !strings.HasPrefix(body, `{"error":`) {
			t.Errorf("%s: %s", test.document, body)
		}
	}
	if len(applied) != 4 {
		t.Errorf("the component got %d wirings, want 4: %v", len(applied), applied)
	}
}

// A wiring is in effect even if its change takes too long. A higher epoch interrupts a
// change. A lower epoch is rejected at once.
func TestWiringOfAHigherEpochInterrupts(t *testing.T) {
	t.Parallel()
	begun := make(chan int64, 10)
	n := newNeighbours(sut.Wiring{}, func(ctx context.Context, w sut.Wiring) error {
		begun <- w.Epoch
		if w.Epoch%2 == 0 {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if answer := put(n, "0.01", `{"epoch":1}`); answer.Code != http.StatusGatewayTimeout || shown(n) != `{"epoch":1}` {
		t.Errorf("slow change: status %d, body %s, current wiring %s", answer.Code, answer.Body, shown(n))
	}
	<-begun
	slow := make(chan *httptest.ResponseRecorder)
	go func() { slow <- put(n, "3600", `{"epoch":3}`) }()
	<-begun
	if answer := put(n, "", `{"epoch":2}`); answer.Code != http.StatusConflict {
		t.Errorf("lower epoch than the running change: status %d, body %s", answer.Code, answer.Body)
	}
	if answer := put(n, "", `{"epoch":4}`); answer.Code != http.StatusNoContent || shown(n) != `{"epoch":4}` {
		t.Errorf("higher epoch than the running change: status %d, body %s, current wiring %s",
			answer.Code, answer.Body, shown(n))
	}
	if answer := <-slow; answer.Code != http.StatusConflict {
		t.Errorf("interrupted change: status %d, body %s", answer.Code, answer.Body)
	}
}
