package sqlite_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	zs "zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

func TestPlans(t *testing.T) {
	dir := t.TempDir()
	node := serve(t, sqlite.Config{Dir: dir})
	s := storetest.Open(t, node.Addr().String())
	s.CreateSchema(context.Background())
	t0 := time.Now()
	if err := s.Load(context.Background(), benchData{}); err != nil {
		t.Fatal(err)
	}
	fmt.Println("load", time.Since(t0))
	c, err := zs.OpenConn(dir+"/stagebench.db", zs.OpenReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pc := "id, user_id, title, state, width, height, bytes, created_us, likes, comments, version"
	ppc := "p.id, p.user_id, p.title, p.state, p.width, p.height, p.bytes, p.created_us, p.likes, p.comments, p.version"
	for _, q := range []string{
		`select ` + pc + ` from photos where id in (select p.id from follows f join photos p on p.user_id = f.followee where f.follower = $1 order by p.created_us desc, p.id desc limit $2) order by created_us desc, id desc`,
		`select ` + ppc + ` from follows f join photos p on p.user_id = f.followee where f.follower = $1 order by p.created_us desc, p.id desc limit $2`,
		`select ` + ppc + ` from (select p.id, p.created_us from follows f join photos p on p.user_id = f.followee where f.follower = $1 order by p.created_us desc, p.id desc limit $2) t join photos p on p.id = t.id order by t.created_us desc, t.id desc`,
		`select ` + pc + ` from photos where id in (select p.id from follows f cross join photos p where p.user_id = f.followee and f.follower = $1 order by p.created_us desc, p.id desc limit $2) order by created_us desc, id desc`,
		`select ` + pc + ` from photos where id = $1 + $2`,
		`select ` + pc + ` from photos where id in (1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20) and id != $1 + $2`,
	} {
		e, _, err := c.PrepareTransient("explain query plan " + q)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("----", q[:60])
		for {
			ok, _ := e.Step()
			if !ok {
				break
			}
			fmt.Println("   ", e.ColumnText(3))
		}
		e.Finalize()
		st, _, _ := c.PrepareTransient(q)
		st.BindInt64(2, 20)
		n := 0
		t0 := time.Now()
		for i := range 5000 {
			st.BindInt64(1, int64(i%1000+1))
			for {
				ok, err := st.Step()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				n++
			}
			st.Reset()
		}
		fmt.Println("   us/op", float64(time.Since(t0).Microseconds())/5000, "rows/op", n/5000)
		st.Finalize()
	}
	_ = os.Stdout
}
